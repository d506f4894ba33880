"""Fitting guesses and corrections to a flow: what `harness calibrate` does.

A few hundred latents are decoded exactly. For every layer, ridge regression then fits the guess to its outputs, and,
iteration by iteration from that guess, a correction to the error that each Jacobi update leaves. The strength of every
ridge is chosen on samples held out from its fit. See `harness.decoders.fits` for what is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness.decoders.fits import Calibration, LayerFit, checkpoint_digest, stored_beside
from harness.decoders.maps import DENSE, CausalMap
from harness.decoders.sequential import solve_sequential
from harness.fitting.regression import Samples, fit_correction, fit_guess
from harness.flows.protocols import CausalFlow, jacobi_update

SAMPLES, DENSE_SAMPLES = 512, 4096
"""Latents that are decoded exactly."""
CORRECTIONS = 4
"""Iterations that get a correction of their own."""
BATCH = 64
"""Samples per network call."""


def calibrate_checkpoint(flow: CausalFlow, source: Path, samples: int | None = None, seed: int = 0) -> Path:
    """Fit to a flow and store the result for its checkpoint; the path it was written to."""
    path = stored_beside(source, ".safetensors")
    calibrate(flow, samples=samples, seed=seed, digest=checkpoint_digest(source)).save(path)
    return path


@torch.no_grad()
def calibrate(flow: CausalFlow, samples: int | None = None, seed: int = 0, digest: str = "") -> Calibration:
    """Fit guesses and corrections to every layer.

    Args:
        flow: what is decoded; a conditional one with classes drawn uniformly.
        samples: how many latents are decoded exactly for it; None for `SAMPLES`, or `DENSE_SAMPLES` where maps are
            dense, which have more to learn from sequences that cost less.
        seed: of latents and classes.
        digest: of the checkpoint.
    """
    lags = neighbours(flow)
    samples = samples or (DENSE_SAMPLES if lags is None else SAMPLES)
    generator = torch.Generator().manual_seed(seed)
    latents = flow.sample_latents(samples, generator)
    labels = torch.randint(flow.num_classes, (samples,), generator=generator) if flow.num_classes else None
    labels = labels if labels is None else labels.to(latents.device)
    drawn = Samples(labels, flow.num_classes, lags)
    tokens, layers = flow.scale_latents(latents), {}
    for layer in flow.layers:
        inputs = layer.arrange(tokens)
        outputs = _in_batches(flow, labels, lambda z, c: solve_sequential(layer, z, c)[0])(inputs)  # noqa: B023
        jacobi = _in_batches(flow, labels, lambda x, z, c: jacobi_update(layer, z, x, c))  # noqa: B023
        layers[layer.number] = _fit_layer(inputs, outputs, drawn, jacobi)
        tokens = layer.restore(outputs)
    return Calibration(digest, layers, samples)


def neighbours(flow: CausalFlow) -> tuple[int, ...] | None:
    """Lags of the predecessors that matter: the last two tokens and, in an image, the three in the row before.

    None where the sequence is so short that all predecessors can be looked at.
    """
    if flow.num_tokens * flow.token_dim <= DENSE:
        return None
    if flow.image_shape is None:
        return (1, 2)
    row = math.isqrt(flow.num_tokens)
    return tuple(sorted(lag for lag in {1, 2, row - 1, row, row + 1} if 0 < lag < flow.num_tokens))


Step = Callable[..., Tensor]


def _in_batches(flow: CausalFlow, labels: Tensor | None, step: Step) -> Step:
    """(tensors of N samples) -> (N, L, D), where `step` takes a batch of them and its condition."""

    def apply(*tensors: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(tensors[0]), BATCH):
            rows = slice(start, start + BATCH)
            batch = [tensor[rows] for tensor in tensors]
            condition = flow.condition(len(batch[0]), None if labels is None else labels[rows])
            parts.append(step(*batch, condition))
        return torch.cat(parts)

    return apply


def _fit_layer(inputs: Tensor, outputs: Tensor, samples: Samples, jacobi: Step) -> LayerFit:
    """The guess, and corrections of the iterations from it, one after the other."""
    guess = fit_guess(inputs, outputs, samples)
    fitted: list[CausalMap] = []
    tokens = guess(inputs, samples.labels)
    for _ in range(CORRECTIONS):
        tokens[:, 0] = inputs[:, 0]
        update = jacobi(tokens, inputs)
        change = update - tokens
        fitted.append(fit_correction(change, outputs - update, samples))
        tokens = update + fitted[-1](change, samples.labels)
    return LayerFit(guess, tuple(fitted))
