"""Training learned corrections: what a few hundred exactly decoded samples say of the error that an iteration leaves.

Iteration by iteration from the fitted guess, along the iterates that the corrections before it make. A correction is
kept where on samples held out it leaves clearly less than the best linear one, so a layer has as many as it gains by.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.decoders.calibration import LayerFit
from harness.decoders.exact import LayerProblem
from harness.decoders.learned import GatedMap
from harness.decoders.maps import CausalMap
from harness.fitting.regression import Samples, fit_correction, held_out

MOST = 8
"""Learned corrections of a layer, at most."""
MOST_HOPS, MOST_WIDTH = 16, 32
"""As many hops as an image's row has tokens follow the error down a column; wider maps learned more slowly."""
STEPS, AGAIN, BATCH, RATE = 300, 150, 16, 3e-3
"""Of AdamW, at least so many, from random weights and from those of the iteration before; a cosine lowers the rate."""
CLEARLY = 0.9
"""A learned correction that leaves no less than this share of the linear one's squared error is not kept."""
ENOUGH = 2e-3
"""Relative error of a layer's output below which nothing more is learned."""


@dataclass(frozen=True)
class _Iteration:
    """What one network call made of the training samples, `error` less the linear correction: all (N, L, ...)."""

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
    beside: list[CausalMap] = []
    scale = float(problem.exact.square().mean().sqrt())
    chosen = held_out(len(tokens), tokens.device)
    while True:
        known = problem.explain(tokens)
        change, error = known.tokens - tokens, problem.exact - known.tokens
        beside.append(fit_correction(change, error, samples))
        linear = beside[-1](change, samples.labels)
        seen = _Iteration(change, error - linear, known.scaled, known.hidden)
        left, by_linear = (float(of[chosen].square().mean().sqrt()) / scale for of in (error, seen.error))
        if len(learned) == MOST or not ENOUGH < by_linear < math.inf or time.monotonic() > deadline:
            break
        before = learned[-1] if learned else None
        start = before or _new(seen, lags, generator)
        gated, remaining = _train(seen, chosen, start, AGAIN if before else STEPS, generator)
        report(f"layer {problem.layer.number}, iteration {len(learned) + 1}: an iteration leaves {left:.4f} of the "
               f"output, with a linear correction {by_linear:.4f}, learned {remaining * by_linear:.4f}")  # fmt: skip
        if remaining > math.sqrt(CLEARLY):
            break
        learned.append(gated)
        tokens = known.tokens + linear
        for rows in torch.arange(len(tokens), device=tokens.device).split(BATCH):
            tokens[rows] += gated(seen.change[rows], seen.scaled[rows], seen.hidden[rows])
    return LayerFit(fit.guess, list(fit.corrections), learned, beside if learned else [])


def width_of(lags: tuple[int, ...], hops: int, token_dim: int, hidden_dim: int) -> int:
    """The most channels, in eights, whose products are at most a 24th of what two transformer layers do for a token.

    >>> width_of((1, 2, 7, 8, 9), 8, 48, 128), width_of((1, 2, 15, 16, 17), 16, 12, 256)
    (16, 24)
    """

    def products(width: int) -> int:
        places = len(lags)
        return (places + 2) * token_dim * width + hidden_dim * width + (hops - 1) * places * width**2

    return max((width for width in range(8, MOST_WIDTH + 1, 8) if products(width) <= hidden_dim**2), default=8)


def _new(seen: _Iteration, lags: tuple[int, ...], generator: torch.Generator) -> GatedMap:
    _, length, dim = seen.change.shape
    hops, hidden_dim = min(max(math.isqrt(length), 8), MOST_HOPS), seen.hidden.shape[-1]
    gated = GatedMap(lags, hops, dim, hidden_dim, width_of(lags, hops, dim, hidden_dim)).to(seen.change)
    gated.initialise(generator)
    return gated


def _train(
    seen: _Iteration, chosen: Tensor, start: GatedMap, steps: int, generator: torch.Generator
) -> tuple[GatedMap, float]:
    """A correction, and the share of the linear one's error (RMS) that it leaves on the samples `chosen`."""
    rows, kept = (torch.nonzero(mask)[:, 0] for mask in (~chosen, chosen))
    gated = copy.deepcopy(start).requires_grad_(True)
    per_epoch = math.ceil(len(rows) / BATCH)
    epochs = math.ceil(steps / per_epoch)
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
