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

from harness.decoders.fits import (
    Calibration,
    LaggedMap,
    LayerFit,
    checkpoint_digest,
    lagged,
    stored_beside,
)
from harness.decoders.sequential import solve_sequential
from harness.flows.base import CausalFlow, CausalLayer, Condition

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Strengths that are tried, relative to the mean variance of the features."""
HELD_OUT = 4
"""One sample in so many chooses the strength."""


def calibrate_checkpoint(flow: CausalFlow, source: Path, samples: int = 512, seed: int = 0) -> Path:
    """Fit to a flow and store the result for its checkpoint; the path it was written to."""
    path = stored_beside(source, ".safetensors")
    calibrate(flow, samples=samples, seed=seed, digest=checkpoint_digest(source)).save(path)
    return path


@torch.no_grad()
def calibrate(
    flow: CausalFlow, samples: int = 512, corrections: int = 4, seed: int = 0, digest: str = "", batch: int = 64
) -> Calibration:
    """Fit guesses and corrections to every layer.

    Args:
        flow: what is decoded; a conditional one with classes drawn uniformly.
        samples: how many latents are decoded exactly for it.
        corrections: iterations that get a correction of their own.
        seed: of latents and classes.
        digest: of the checkpoint.
        batch: samples per network call.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = flow.sample_latents(samples, generator)
    labels = torch.randint(flow.num_classes, (samples,), generator=generator) if flow.num_classes else None
    lags = neighbours(flow)
    tokens, layers = flow.scale_latents(latents), {}
    for layer in flow.layers:
        inputs = layer.arrange(tokens)
        solve = _in_batches(flow, labels, batch, lambda layer, _, *rest: solve_sequential(layer, *rest)[0])
        outputs = solve(layer, inputs, inputs)
        layers[layer.number] = _fit_layer(
            layer, inputs, outputs, lags, corrections, _in_batches(flow, labels, batch, _jacobi)
        )
        tokens = layer.restore(outputs)
    return Calibration(digest, layers, samples)


def neighbours(flow: CausalFlow) -> tuple[int, ...]:
    """Lags of the predecessors that matter: the last two tokens and, in an image, the three in the row before."""
    if flow.image_shape is None:
        return (1, 2)
    row = math.isqrt(flow.num_tokens)
    return tuple(sorted(lag for lag in {1, 2, row - 1, row, row + 1} if 0 < lag < flow.num_tokens))


Apply = Callable[[CausalLayer, Tensor, Tensor], Tensor]


def _in_batches(
    flow: CausalFlow,
    labels: Tensor | None,
    batch: int,
    step: Callable[[CausalLayer, Tensor, Tensor, Condition], Tensor],
) -> Apply:
    """(layer, tokens, inputs) -> tokens for any number of samples, a few at a time."""

    def apply(layer: CausalLayer, tokens: Tensor, inputs: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(inputs), batch):
            rows = slice(start, start + batch)
            condition = flow.condition(len(inputs[rows]), None if labels is None else labels[rows])
            parts.append(step(layer, tokens[rows], inputs[rows], condition))
        return torch.cat(parts)

    return apply


def _jacobi(layer: CausalLayer, tokens: Tensor, inputs: Tensor, condition: Condition) -> Tensor:
    log_scale, shift = layer.affine(tokens[:, :-1], None, 0, condition)
    return torch.cat([inputs[:, :1], torch.addcmul(shift, inputs[:, 1:], log_scale.exp())], dim=1)


def _fit_layer(
    layer: CausalLayer, inputs: Tensor, outputs: Tensor, lags: tuple[int, ...], corrections: int, jacobi: Apply
) -> LayerFit:
    guess = _ridge(inputs, outputs, (0, *lags), bias=True)
    fitted: list[LaggedMap] = []
    tokens = guess(inputs)
    tokens[:, 0] = inputs[:, 0]
    for _ in range(corrections):
        update = jacobi(layer, tokens, inputs)
        change = update - tokens
        fitted.append(_ridge(change[:, 1:], (outputs - update)[:, 1:], lags, bias=False))
        tokens = update
        tokens[:, 1:] += fitted[-1](change[:, 1:])
    return LayerFit(guess, tuple(fitted))


def _ridge(sources: Tensor, targets: Tensor, lags: tuple[int, ...], bias: bool) -> LaggedMap:
    """The lagged map from (N, W, D) sources to (N, W, D) targets with the least squared error on held-out samples."""
    held_out = torch.arange(len(sources)) % HELD_OUT == HELD_OUT - 1
    dim = sources.shape[-1]
    fits, best = _moments(sources[~held_out], targets[~held_out], lags, bias), math.inf
    for strength in RIDGES:
        candidate = _solve(*fits, strength, lags, dim, bias, sources)
        error = float((candidate(sources[held_out]) - targets[held_out]).square().mean())
        if error < best:
            best, chosen = error, strength
    if not math.isfinite(best):  # a layer that overflows teaches nothing: predict no correction, or the input itself
        return _nothing(lags, dim, bias, sources)
    return _solve(*_moments(sources, targets, lags, bias), chosen, lags, dim, bias, sources)


def _moments(sources: Tensor, targets: Tensor, lags: tuple[int, ...], bias: bool) -> tuple[Tensor, Tensor]:
    """Second moments of the features, and theirs with the targets, summed in float64 a few samples at a time."""
    size = len(lags) * sources.shape[-1] + bias
    gram = sources.new_zeros(size, size, dtype=torch.float64)
    cross = sources.new_zeros(size, targets.shape[-1], dtype=torch.float64)
    for source, target in zip(sources.split(64), targets.split(64), strict=True):
        features = lagged(source, lags).flatten(0, 1)
        if bias:
            features = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
        features = features.double()
        gram.addmm_(features.T, features)
        cross.addmm_(features.T, target.flatten(0, 1).double())
    return gram, cross


def _solve(
    gram: Tensor, cross: Tensor, strength: float, lags: tuple[int, ...], dim: int, bias: bool, like: Tensor
) -> LaggedMap:
    penalty = torch.full_like(gram.diagonal(), strength * float(gram.diagonal().mean()) + 1e-12)
    weight = torch.linalg.lstsq(gram + torch.diag(penalty), cross).solution.to(like)
    split = len(lags) * dim
    return LaggedMap(lags, weight[:split].contiguous(), weight[split].contiguous() if bias else None)


def _nothing(lags: tuple[int, ...], dim: int, bias: bool, like: Tensor) -> LaggedMap:
    weight = like.new_zeros(len(lags) * dim, dim)
    if bias:
        weight[:dim] = torch.eye(dim)
    return LaggedMap(lags, weight, like.new_zeros(dim) if bias else None)
