"""How a layer is solved: token after token, and one loop for every parallel decoder.

In the loop a layer is solved by network calls on windows of its tokens.

A call evaluates the positions [start, end), given the cached prefix before them, and so updates the tokens
start+1 .. end. Where the window goes next is for a `harness.decoders.windows.Windows` to say. A token is frozen when
the window has moved past it: it is not evaluated again, and its keys and values stay in the cache.

The map is strictly causal, so each call makes at least one more token exact, whatever the start (SeJD, arXiv
2505.24791, Prop. 3.2): a window of W tokens is exact after W calls, and a token whose own inputs did not change in the
last call is exact if they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from harness.decoders.micro_batches import Footprint
from harness.decoders.stopping import NORMS, Norm
from harness.decoders.trace import LayerTrace
from harness.decoders.windows import Visit, Windows, calm
from harness.flows.protocols import CausalLayer, Condition, Explained

ROUNDING = 1e-6
"""A residual that grows by less than this share of the layer's largest one is rounding, and not flagged."""


class Correction(Protocol):
    """Predicts the error that an update leaves from the change that it made; see `harness.decoders.fitted`."""

    def asks(self, visits: list[Visit]) -> bool:
        """Whether it goes by what the network knew of a window whose tokens had been updated so often."""

    def __call__(
        self, change: Tensor, known: Explained | None, labels: Tensor | None, start: int, visits: list[Visit]
    ) -> Tensor:
        """(B, W, D) change of the tokens from `start`, and how often they had been updated -> (B, W, D) to be added.

        It must be strictly causal and map 0 to 0: then tokens that were exact stay exact. `known` is there when asked.
        """


def solve_sequential(layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
    """Invert one layer exactly, (B, L, D) z_in in its order: L - 1 calls of one token each."""
    tokens = inputs.clone()
    cache = layer.new_cache(len(inputs), condition)
    steps = layer.num_tokens - 1
    for position in range(steps):
        window = tokens[:, position : position + 1]
        tokens[:, position + 1 : position + 2] = layer.update(inputs, window, cache, position, condition)
    return tokens, exact_trace(layer, "sequential", tokens, steps * condition.passes)


def exact_trace(layer: CausalLayer, mode: str, tokens: Tensor, token_evaluations: float) -> LayerTrace:
    """Of a layer whose (B, L, D) outputs took L - 1 calls and are exact unless they overflowed."""
    steps, finite = layer.num_tokens - 1, bool(tokens.isfinite().all())
    flags = () if finite else ("non-finite",)
    return LayerTrace(layer.number, layer.block, mode, steps, finite, [], token_evaluations, steps, flags, exact=True)


def solve_windows(
    layer: CausalLayer,
    inputs: Tensor,
    condition: Condition,
    tokens: Tensor,
    windows: Windows,
    *,
    norm: str = "inf",
    scope: str = "batch",
    clamp: float | None = None,
    max_calls: int | None = None,
    correction: Correction | None = None,
    judged: bool = True,
) -> tuple[Tensor, LayerTrace]:
    """Invert one layer by evaluating windows of its tokens.

    Args:
        inputs: (B, L, D) z_in in the layer's order.
        tokens: (B, L, D) the first iterate; overwritten, and returned.
        norm: of the update, by its name in `NORMS`.
        scope: ``"batch"`` moves one window for all samples. With ``"sample"`` each sample has a window of its own and
            is updated in there only, so that it never depends on another; a call covers all of them.
        clamp: bound on the magnitude of iterates, against overflow; None for none.
        max_calls: cap on the calls, after which the tokens are left as they are.
        judged: whether windows that are not adaptive converge by tau; otherwise they are a fixed amount of work, done
            when it is finite.

    Returns:
        (B, L, D) outputs and their trace. A residual that grows is only flagged; a non-finite one ends its window.
    """
    last = layer.num_tokens - 1
    tokens[:, 0] = inputs[:, 0]
    lanes = [_Lane(*windows.first()) for _ in range(len(inputs) if scope == "sample" and windows.adaptive else 1)]
    whole = windows.whole(last)
    batch = _Batch(layer, inputs, condition, tokens, cached=not whole)
    residuals: list[float] = []
    unread: list[Tensor] = []  # (2,) residual of a call on windows that are not adaptive, and the norm of what it froze
    converged = True
    while going := [lane for lane in lanes if lane.start < last]:
        if len(residuals) == max_calls:
            converged = False
            break
        if whole and len(going) < len(lanes):
            batch.keep([i for i, lane in enumerate(lanes) if lane.start < last])
            lanes = going
        start, end = min(lane.start for lane in going), min(max(lane.end for lane in going), last)
        inside = None if whole else _inside(lanes, start, end, tokens.device)
        calls = lanes[0].calls if whole or scope == "batch" else 0  # as if all were new, where samples differ in it
        visits = windows.visits((start, lanes[0].end), end - start, calls) if correction is not None else []
        asked = correction is not None and correction.asks(visits)
        old, update, known = batch.evaluate(start, end, inside, asked)
        if clamp is not None:
            update = update.clamp(-clamp, clamp)
        change = update - old if inside is None else (update - old).where(inside, 0.0)
        norms = _norms(NORMS[norm], change, update, windows, lanes, start, end)
        if correction is not None:
            update = update + correction(change, known, batch.condition.labels, start + 1, visits)
        batch.tokens[:, start + 1 : end + 1] = update if inside is None else torch.where(inside, update, old)
        if windows.adaptive:
            values = _read(norms)
            residuals.append(max((v for vs in values for v in vs), key=lambda v: math.inf if math.isnan(v) else v))
            for lane, window_norms in zip(lanes, values, strict=True):
                if not all(map(math.isfinite, window_norms)):  # the others go on
                    lane.start, converged = last, False
                converged &= lane.start >= last or lane.move(windows, min(lane.end, last) - lane.start, window_norms)
        else:
            settled = lanes[0].move(windows, end - start, [])
            left = norms[0][: min(lanes[0].start, last) - start]
            zero = norms[0].new_zeros(())
            unread.append(torch.stack([norms[0].amax(), zero if settled or not len(left) else left.amax()]))
    batch.finish()
    finite = True
    if unread:
        whole_and_left = torch.stack([*unread, tokens.isfinite().all().expand(2).to(unread[0].dtype)]).tolist()
        residuals, frozen = (list(column) for column in zip(*whole_and_left[:-1], strict=True))
        finite = whole_and_left[-1][0] == 1.0
        converged = converged and finite and (not judged or all(calm(norm, windows.tau) for norm in frozen))
    return tokens, LayerTrace(
        layer=layer.number,
        block=layer.block,
        mode=windows.mode,
        iterations=len(residuals),
        converged=converged,
        residuals=residuals,
        token_evaluations=batch.evaluations,
        depth=len(residuals),
        flags=_flags(residuals, finite, converged, whole),
        fixed=not windows.adaptive and not judged,
    )


def footprint(windows: Windows, layer: CausalLayer, scope: str) -> Footprint:
    """What `solve_windows` takes in memory; with windows of the samples' own, a call covers all of them."""
    own = scope == "sample" and windows.adaptive
    window = layer.num_tokens - 1 if own else min(windows.width, layer.num_tokens - 1)
    return Footprint(
        window, cached=not windows.whole(layer.num_tokens - 1), shared=scope == "batch" and windows.adaptive
    )


@dataclass
class _Lane:
    """The window of one sample, or of the whole batch."""

    start: int
    end: int
    calls: int = 0

    def move(self, windows: Windows, size: int, norms: list[float]) -> bool:
        """Go to the next window; whether the tokens left behind satisfy the stopping rule."""
        self.calls += 1
        window = (self.start, self.end)
        (self.start, self.end), settled = windows.next(window, size, norms, self.calls)
        if (self.start, self.end) != window:
            self.calls = 0
        return settled


class _Batch:
    """The samples of a layer that are still being solved."""

    def __init__(self, layer: CausalLayer, inputs: Tensor, condition: Condition, tokens: Tensor, cached: bool) -> None:
        self.layer, self.inputs, self.condition, self.tokens = layer, inputs, condition, tokens
        self.cache = layer.new_cache(len(inputs), condition) if cached else None
        self.evaluations = 0.0
        self._result, self._rows = tokens, torch.arange(len(tokens), device=tokens.device)
        self._seen: Tensor | None = None

    def evaluate(
        self, start: int, end: int, inside: Tensor | None, explain: bool
    ) -> tuple[Tensor, Tensor, Explained | None]:
        """(B, W, D) tokens start+1 .. end as they are, what one network call makes of them, and what it knew if asked.

        A call that begins before a sample's own window evaluates the positions before it as it did last time, so that
        their keys and values do not depend on how far the other samples are.
        """
        x = self.tokens[:, start:end]
        if inside is not None:
            if self._seen is None:
                self._seen = self.tokens.clone()
            x = self._seen[:, start:end] = torch.where(inside, x, self._seen[:, start:end])
        call = (self.inputs, x, self.cache, start, self.condition)
        known = self.layer.explain(*call) if explain else None
        update = self.layer.update(*call) if known is None else known.tokens
        self.evaluations += (end - start) * self.condition.passes * len(x) / len(self._result)
        return self.tokens[:, start + 1 : end + 1], update, known

    def keep(self, places: list[int]) -> None:
        self.finish()
        keep = torch.tensor(places, device=self.tokens.device)
        self._rows = self._rows[keep]
        self.tokens, self.inputs = self.tokens[keep], self.inputs[keep]
        self.condition = self.condition.select(keep)

    def finish(self) -> None:
        """Write the samples that were kept to where the result is."""
        if self.tokens is not self._result:
            self._result[self._rows] = self.tokens


def _norms(
    norm: Norm, change: Tensor, update: Tensor, windows: Windows, lanes: list[_Lane], start: int, end: int
) -> list[Tensor]:
    """The norms of an update that each lane goes by: (size,) one per token of its window, or (1,)."""
    if windows.per_token:
        batch, window, _ = change.shape
        norms = norm.sample(change.reshape(batch * window, 1, -1), update.reshape(batch * window, 1, -1))
        norms = norms.view(batch, window)
        if len(lanes) == 1:
            return list(norm.pool(norms))
        return [row[lane.start - start : lane.end - start] for row, lane in zip(norms, lanes, strict=True)]
    if len(lanes) == 1:
        return list(norm.pool(norm.sample(change, update)[:, None]))
    own = [slice(lane.start - start, lane.end - start) for lane in lanes]
    if len(set(map(str, own))) == 1:
        return list(norm.sample(change, update)[:, None])
    return [
        norm.sample(change[i : i + 1, window], update[i : i + 1, window])
        if lane.start < end
        else change.new_zeros(0)  # done
        for i, (lane, window) in enumerate(zip(lanes, own, strict=True))
    ]


def _read(norms: list[Tensor]) -> list[list[float]]:
    """Several small tensors as lists, the device waited for once."""
    flat = iter(torch.cat(norms).tolist())
    return [[next(flat) for _ in range(len(part))] for part in norms]


def _inside(lanes: list[_Lane], start: int, end: int, device: torch.device) -> Tensor | None:
    """(B, W, 1) True in each sample's own window; None when all windows are the same ones, always."""
    if len(lanes) == 1:
        return None
    bounds = torch.tensor([(lane.start, lane.end) for lane in lanes], device=device)
    positions = torch.arange(start, end, device=device)
    return ((positions >= bounds[:, :1]) & (positions < bounds[:, 1:]))[..., None]


def _flags(residuals: list[float], finite: bool, converged: bool, whole: bool) -> tuple[str, ...]:
    """What there is to notice. Only calls on one and the same window can be compared with each other."""
    finite = finite and all(map(math.isfinite, residuals))
    rounding = ROUNDING * max(filter(math.isfinite, residuals), default=0.0)
    growing = whole and any(later > earlier + rounding for earlier, later in pairwise(residuals))
    noticed = {"non-finite": not finite, "cap": finite and not converged, "growing": growing}
    return tuple(flag for flag, seen in noticed.items() if seen)
