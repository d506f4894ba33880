"""Training learned corrections: what a few hundred exactly decoded samples say of the error that an iteration leaves.

Iteration by iteration from the fitted guess, along the iterates that the corrections before it make. A correction is
kept where on samples held out it leaves clearly less than the best linear one, so a layer has as many as it gains by.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.decoders.calibration import LayerFit
from harness.decoders.exact import LayerProblem
from harness.decoders.learned import WIDTH, GatedMap
from harness.decoders.maps import CausalMap
from harness.fitting.regression import Samples, fit_correction, held_out

MOST = 8
"""Learned corrections of a layer, at most."""
HOPS = 4
"""At most: in narrow networks of long tokens a hop costs as much as a transformer layer, and there is one."""
STEPS, BATCH, RATE = 300, 16, 3e-3
"""Of AdamW, at least so many, its rate falling as a cosine."""
START = 0.6
"""Share of the linear weights that A starts from; the series' later hops add the rest."""
CLEARLY = 0.9
"""A learned correction that leaves no less than this share of the linear one's squared error is not kept."""
ENOUGH = 2e-3
"""Relative error of a layer's output below which nothing more is learned."""


@dataclass(frozen=True)
class _Iteration:
    """What one network call made of the training samples: all (N, L, ...)."""

    change: Tensor
    error: Tensor
    scaled: Tensor
    hidden: Tensor

    def batches(self, rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for part in rows.split(BATCH):
            yield self.change[part], self.error[part], self.scaled[part], self.hidden[part]


def fit_learned(
    problem: LayerProblem, fit: LayerFit, samples: Samples, lags: tuple[int, ...], generator: torch.Generator,
    deadline: float = math.inf, report: Callable[[str], None] = lambda _: None,
) -> LayerFit:  # fmt: skip
    """A layer's fits with the corrections that could be learned before a deadline, by `time.monotonic`."""
    tokens = fit.guess(problem.inputs, samples.labels)
    tokens[:, 0] = problem.inputs[:, 0]
    learned: list[GatedMap] = []
    scale = float(problem.exact.square().mean().sqrt())
    chosen = held_out(len(tokens), tokens.device)
    while True:
        seen = _seen(problem, tokens)
        linear = fit_correction(seen.change, seen.error, samples)
        left = float(seen.error.square().mean().sqrt()) / scale
        if len(learned) == MOST or not ENOUGH < left < math.inf or time.monotonic() > deadline:
            break
        start = fit_correction(seen.change, seen.error, replace(samples, lags=lags))
        gated, remaining = _train(seen, chosen, start.weight, lags, generator)
        by_linear = _remaining(linear(seen.change, samples.labels)[chosen], seen.error[chosen])
        report(f"layer {problem.layer.number}, iteration {len(learned) + 1}: leaves {remaining:.3f} of the error of "
               f"one plain iteration, {left:.3f}; a linear correction {by_linear:.3f}")  # fmt: skip
        if remaining > math.sqrt(CLEARLY) * by_linear:
            break
        learned.append(gated)
        tokens = tokens + seen.change
        for rows in torch.arange(len(tokens), device=tokens.device).split(BATCH):
            tokens[rows] += gated(seen.change[rows], seen.scaled[rows], seen.hidden[rows])
    after: CausalMap | None = linear if learned else None
    return LayerFit(fit.guess, list(fit.corrections), learned, after)


def hops_of(lags: tuple[int, ...], token_dim: int, hidden_dim: int) -> int:
    """As many hops as multiply about a quarter of what two transformer layers do for a token.

    >>> hops_of((1, 2, 7, 8, 9), 48, 128), hops_of((1, 2, 15, 16, 17), 12, 256), hops_of((1, 2, 15, 16, 17), 48, 64)
    (2, 4, 1)
    """
    hop = len(lags) * token_dim * (2 * token_dim + WIDTH)
    return max(1, min(HOPS, 6 * hidden_dim**2 // hop))


def _seen(problem: LayerProblem, tokens: Tensor) -> _Iteration:
    """One Jacobi iteration; token 0, which is given, has a change of 0."""
    update, scaled, hidden = problem.explain(tokens)
    return _Iteration(update - tokens, problem.exact - update, scaled, hidden)


def _train(
    seen: _Iteration, chosen: Tensor, start: Tensor, lags: tuple[int, ...], generator: torch.Generator
) -> tuple[GatedMap, float]:
    """A correction, and the share of a plain iteration's error (RMS) that it leaves on the samples `chosen`."""
    dim, hidden_dim = seen.change.shape[-1], seen.hidden.shape[-1]
    rows, kept = (torch.nonzero(mask)[:, 0] for mask in (~chosen, chosen))
    gated = GatedMap(lags, hops_of(lags, dim, hidden_dim), dim, hidden_dim).to(seen.change)
    gated.initialise(START * start, generator)
    per_epoch = math.ceil(len(rows) / BATCH)
    epochs = math.ceil(STEPS / per_epoch)
    whole = float(seen.error.square().mean())
    optimizer = torch.optim.AdamW(gated.parameters(), RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    best, weights = math.inf, copy.deepcopy(gated.state_dict())
    for _ in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        for change, error, scaled, hidden in seen.batches(order):
            with torch.enable_grad():
                loss = (gated(change, scaled, hidden) - error).square().mean() / whole
                loss.backward()
            torch.nn.utils.clip_grad_norm_(gated.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        found = torch.cat([gated(change, scaled, hidden) for change, _, scaled, hidden in seen.batches(kept)])
        remaining = _remaining(found, seen.error[kept])
        if remaining < best:
            best, weights = remaining, copy.deepcopy(gated.state_dict())
    gated.load_state_dict(weights)
    return gated.requires_grad_(False), best


def _remaining(correction: Tensor, error: Tensor) -> float:
    left = float((correction - error).square().mean() / error.square().mean())
    return math.sqrt(left) if math.isfinite(left) else math.inf
