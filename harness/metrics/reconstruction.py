"""Real images, encoded exactly and decoded again: what a decoder loses (arXiv 2505.24791, Sec. E.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.decoders.decoder import Decoder
from harness.errors import HarnessError
from harness.flows.protocols import CausalFlow
from harness.metrics.deviation import Deviation


@torch.no_grad()
def reconstruction(
    flow: CausalFlow, decoder: Decoder, images: Tensor, labels: Tensor | None = None, batch_size: int = 64
) -> Deviation:
    """The deviation of decoded from real images; its `mse` is what the paper reports.

    `encode` gives latents on the scale of the learned prior and `decode` applies that scale itself, so it is taken out
    in between. The images are (N, C, H, W) in [-1, 1], on any device; a flow of other data is a `HarnessError`.
    """
    if flow.image_shape is None:
        raise HarnessError("reconstruction compares images, and this flow's data are none")
    ones = torch.ones(1, flow.num_tokens, flow.token_dim, device=flow.device, dtype=flow.dtype)
    prior_scale = flow.scale_latents(ones)
    deviation = Deviation()
    for rows in torch.arange(len(images)).split(batch_size):
        batch = images[rows].to(flow.device, flow.dtype)
        batch_labels = None if labels is None else labels[rows].to(flow.device)
        latents, _ = flow.encode(batch, batch_labels)
        decoded = decoder.decode(flow, latents / prior_scale, batch_labels).images
        assert decoded is not None  # the flow has an image shape
        deviation.add(decoded, batch)
    return deviation
