"""Ridge regression of the causal maps that decoders start from and correct by; see `harness.decoders.maps`.

Means are taken per class and position, drawn together where samples are few (James and Stein: a mean's deviation is
kept in proportion to how much of it is not noise). Strengths of ridges are chosen on samples held out from the fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.decoders.maps import CausalMap, DenseMap, Guess, LaggedMap, lagged

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Strengths that are tried, relative to the mean variance of the features."""
CLASS_RIDGES = (1e-2, 1e-1, 1.0, 10.0)
"""The same for how firmly the map of a class is held to that of all classes."""
HELD_OUT = 4
"""One sample in so many chooses the strength."""

T = TypeVar("T")
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Samples:
    """What a fit knows of its N samples.

    Args:
        labels: (N,) classes, or None for an unconditional flow.
        lags: of predecessors, from 1, for lagged maps; None for dense ones.
    """

    labels: Tensor | None
    classes: int
    lags: tuple[int, ...] | None

    def rows(self, count: int) -> Tensor:
        """(N,) the entry of each sample in whatever is kept per class, `classes` for none."""
        return torch.full((count,), self.classes) if self.labels is None else self.labels


def fit_guess(inputs: Tensor, outputs: Tensor, samples: Samples) -> Guess:
    """The linear guess of a layer's outputs from its inputs."""
    rows, classes = samples.rows(len(inputs)).to(inputs.device), samples.classes
    sources, targets = group_means(inputs, rows, classes), group_means(outputs, rows, classes)
    if not _finite(sources, targets):  # a layer that overflows teaches nothing: its input stands for its output
        return Guess(LaggedMap((0,), torch.eye(inputs.shape[-1]).to(inputs)), torch.zeros_like(sources))
    within = inputs - sources[rows], outputs - targets[rows]
    if samples.lags is not None:
        fitted: CausalMap = _fit_lagged(*within, (0, *samples.lags))
    else:
        pooled = inputs - sources[-1], outputs - targets[-1]
        fitted = _fit_dense(within, pooled, rows, classes, strict=False)
    left = [group_means(outputs - fitted(inputs, known), rows, classes) for known in (samples.labels, None)]
    return Guess(fitted, torch.cat([left[0][:-1], left[1][-1:]]))


def fit_correction(change: Tensor, error: Tensor, samples: Samples) -> CausalMap:
    """The strictly causal map of an update's change that predicts the error which the update leaves.

    Args:
        change: (N, L, D) made by the update.
        error: (N, L, D) that is left.
    """
    _, length, dim = change.shape
    if samples.lags is not None:
        if not _finite(change, error):
            return LaggedMap(samples.lags, change.new_zeros(len(samples.lags) * dim, dim))
        return _fit_lagged(change[:, 1:], error[:, 1:], samples.lags)
    if not _finite(change, error):
        return DenseMap(change.new_zeros(samples.classes + 1, length, dim, length, dim))
    rows = samples.rows(len(change)).to(change.device)
    return _fit_dense((change, error), (change, error), rows, samples.classes, strict=True)


def group_means(values: Tensor, rows: Tensor, classes: int) -> Tensor:
    """(classes + 1, L, D) means of (N, L, D) values by class and position; the last is that of all samples."""
    flat = values.mean(dim=(0, 1)).expand(values.shape[1:])
    overall = _shrunk(values, flat)
    means = [_shrunk(values[rows == label], overall) for label in range(classes)]
    return torch.stack([*means, overall])


def _shrunk(values: Tensor, centre: Tensor) -> Tensor:
    """The mean of (n, L, D) values, drawn to a centre by the share of the deviation that is noise."""
    if len(values) < 2:
        return centre
    deviation = values.mean(dim=0) - centre
    noise = values.var(dim=0).mean() / len(values)
    kept = 1 - noise / deviation.square().mean().clamp_min(1e-30)
    return centre + deviation * kept.clamp(0, 1)


def _fit_lagged(sources: Tensor, targets: Tensor, lags: tuple[int, ...]) -> LaggedMap:
    def moments(rows: Tensor) -> Pair:
        dim = sources.shape[-1]
        gram = sources.new_zeros(len(lags) * dim, len(lags) * dim, dtype=torch.float64)
        cross = gram.new_zeros(len(gram), dim)
        for source, target in zip(sources[rows].split(64), targets[rows].split(64), strict=True):  # bounds the memory
            features = lagged(source, lags).flatten(0, 1).double()
            gram.addmm_(features.T, features)
            cross.addmm_(features.T, target.flatten(0, 1).double())
        return gram, cross

    def solve(gram: Tensor, cross: Tensor, strength: float) -> LaggedMap:
        return LaggedMap(lags, _ridge(gram, cross, strength).to(sources).contiguous())

    return _best(sources, targets, RIDGES, moments, solve, lambda fitted, held_out: fitted(held_out))


def _fit_dense(within: Pair, pooled: Pair, rows: Tensor, classes: int, strict: bool) -> DenseMap:
    """One map per class, each held to that of all classes, and one for samples without a class.

    Args:
        within: (N, L, D) sources and targets of every sample, less the means of its class.
        pooled: the same, less the means of all.
        strict: whether a token is predicted from those before it only.
    """
    weights = [_fit_triangular(pooled, strict)]
    if classes:
        weights = [*_fit_classes(within, rows, classes, strict, _fit_triangular(within, strict)), *weights]
    shape = within[0].shape[1:]
    return DenseMap(torch.stack(weights).to(within[0]).view(-1, *shape, *shape))


def _fit_triangular(pair: Pair, strict: bool) -> Tensor:
    """(L * D, L * D) weight, in float64."""
    dim = pair[0].shape[-1]
    flat, aims = (tensor.flatten(1).double() for tensor in pair)

    def moments(rows: Tensor) -> Pair:
        return flat[rows].T @ flat[rows], flat[rows].T @ aims[rows]

    def solve(gram: Tensor, cross: Tensor, strength: float) -> Tensor:
        return _triangular(gram, cross, strength, dim, strict)

    return _best(flat, aims, RIDGES, moments, solve, lambda weight, held_out: held_out @ weight)


def _fit_classes(pair: Pair, rows: Tensor, classes: int, strict: bool, shared: Tensor) -> list[Tensor]:
    """One (L * D, L * D) weight per class, each held to the shared one."""
    dim = pair[0].shape[-1]
    flat, aims = (tensor.flatten(1).double() for tensor in pair)
    aside = rows[held_out(len(flat), rows.device)]

    def moments(chosen: Tensor) -> list[Pair]:
        parts = [chosen & (rows == label) for label in range(classes)]
        return [(flat[part].T @ flat[part], flat[part].T @ aims[part]) for part in parts]

    def solve(*arguments: Any) -> list[Tensor]:
        *parts, strength = arguments
        return [_triangular(gram, cross, strength, dim, strict, shared) for gram, cross in parts]

    def apply(weights: list[Tensor], sources: Tensor) -> Tensor:
        return torch.bmm(sources[:, None], torch.stack(weights)[aside])[:, 0]

    return _best(flat, aims, CLASS_RIDGES, moments, solve, apply)


def _best(
    sources: Tensor,
    targets: Tensor,
    strengths: Sequence[float],
    moments: Callable[[Tensor], Sequence[Any]],
    solve: Callable[..., T],
    apply: Callable[[T, Tensor], Tensor],
) -> T:
    """What `solve` makes of all samples, with the strength whose fit to the others predicts the held-out ones best."""
    aside = held_out(len(sources), sources.device)
    kept, best, chosen = moments(~aside), math.inf, max(strengths)
    for strength in strengths:
        error = float((apply(solve(*kept, strength), sources[aside]) - targets[aside]).square().mean())
        if error < best:
            best, chosen = error, strength
    return solve(*moments(torch.ones_like(aside)), chosen)


def held_out(count: int, device: torch.device) -> Tensor:
    """(count,) True for the samples that a fit does not see."""
    return torch.arange(count, device=device) % HELD_OUT == HELD_OUT - 1


def _triangular(
    gram: Tensor, cross: Tensor, strength: float, dim: int, strict: bool, prior: Tensor | None = None
) -> Tensor:
    """Ridge regression of every token on those up to it, or before it: a block upper triangular weight."""
    weight = torch.zeros_like(gram)
    for token in range(len(gram) // dim):
        end = (token if strict else token + 1) * dim
        if end:
            own = slice(token * dim, (token + 1) * dim)
            before = None if prior is None else prior[:end, own]
            weight[:end, own] = _ridge(gram[:end, :end], cross[:end, own], strength, before)
    return weight


def _ridge(gram: Tensor, cross: Tensor, strength: float, prior: Tensor | None = None) -> Tensor:
    """The weight with the least squared error plus penalty on its distance to a prior weight, by default 0."""
    penalty = strength * float(gram.diagonal().mean()) + 1e-12
    if prior is not None:
        cross = cross + penalty * prior
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross)


def _finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
