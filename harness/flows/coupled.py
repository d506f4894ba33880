"""Small random flows whose tokens depend strongly on each other: what contracts are checked on.

A TarFlow as initialised is nearly the identity (its last projection is zero), so any decoder would be exact on it.
Here that projection is random, and Jacobi iteration needs most of its L - 1 steps to become exact.
"""

from __future__ import annotations

import torch
from torch import nn

from harness.flows.discrete import DiscreteFlow
from harness.flows.tarflow import TarFlow, TarFlowConfig

SHIFT_GAIN = 0.8
"""Gain of the projection to shift. With 0.8 Jacobi needs 11 to 15 of 15 iterations to fall below 1e-4."""
LOG_SCALE_GAIN = 0.1
"""Gain of the projection to log_scale; smaller, because tokens grow with its exponential and soon overflow."""


def coupled_tarflow(seed: int = 0, num_classes: int = 0, blocks: int = 3) -> TarFlow:
    """A random TarFlow on 8x8 grey images: L = 16 tokens of D = 4 numbers.

    Args:
        seed: of its weights; PyTorch's own generator is left as it was.
        num_classes: 0 for an unconditional flow.

    Example:
        >>> from harness.decoders import build_decoder
        >>> flow = coupled_tarflow()
        >>> latents = flow.sample_latents(2, torch.Generator().manual_seed(0))
        >>> result = build_decoder("ujd", tau=1e-4).decode(flow, latents)
        >>> min(trace.iterations for trace in result.layers) > 10
        True
    """
    config = TarFlowConfig(
        image_channels=1, image_size=8, patch=2, channels=64, blocks=blocks, layers_per_block=1, num_classes=num_classes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = TarFlow(config)
        for block in flow.layers:
            log_scale, shift = block.proj_out.weight.chunk(2)
            nn.init.normal_(log_scale, std=LOG_SCALE_GAIN * config.channels**-0.5)
            nn.init.normal_(shift, std=SHIFT_GAIN * config.channels**-0.5)
            if block.class_embed is not None:
                nn.init.normal_(block.class_embed, std=0.5)  # so that labels matter
        nn.init.uniform_(flow.var, 0.5, 1.5)  # so that a decoder that forgets the prior's scale is found out
    return flow.requires_grad_(False).eval()


def coupled_discrete(seed: int = 0, num_classes: int = 4) -> DiscreteFlow:
    """A random model of 4x4 images of 17 levels, whose layer is not affine: L = 17 tokens of D = 17 numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = DiscreteFlow(torch.linspace(-1, 1, 17), torch.zeros(17, 1, 4, 4), 32, 2, num_classes)
        nn.init.normal_(flow.layer.proj_out.weight, std=0.5)
        for weight in flow.layer.parameters(recurse=False):  # the embeddings
            nn.init.normal_(weight)
    return flow.requires_grad_(False).eval()
