"""What a decode returns: the samples, and how each layer was inverted."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

State = Literal["converged", "done", "not converged"]


def worst(states: Iterable[State]) -> State:
    """The least certain of some states; of none, that nothing is left to do."""
    found = set(states)
    return "not converged" if "not converged" in found else "done" if "done" in found else "converged"


@dataclass(frozen=True)
class LayerTrace:
    """How one layer was inverted.

    Args:
        layer: place in decoding order, 1 is next to the prior.
        block: the checkpoint's own index.
        mode: the method that produced the tokens, such as ``"sequential"`` or ``"jacobi"``.
        iterations: of that method; the steps L - 1 when it is sequential.
        converged: the tokens satisfy the stopping rule, or are exact; of a fixed amount of work: it was done, and is
            finite.
        residuals: the stopping rule's norm of the update, one per iteration; empty when nothing iterates.
        token_evaluations: tokens pushed through the layer's network, per sample, every pass and attempt counted.
        depth: network calls that had to follow each other, every attempt counted.
        flags: what was noticed: ``"non-finite"``, ``"cap"``, ``"growing"``, ``"redecoded"``, ``"polished"``.
        exact: token by token, so that nothing is gained by decoding the layer again.
        fixed: a fixed amount of work, which no stopping rule judges.
    """

    layer: int
    block: int
    mode: str
    iterations: int
    converged: bool
    residuals: list[float]
    token_evaluations: float
    depth: int
    flags: tuple[str, ...] = ()
    wall_s: float = math.nan
    exact: bool = False
    fixed: bool = False

    @property
    def state(self) -> State:
        """How it ended: by its stopping rule or exact, with its fixed work done, or given up."""
        return "not converged" if not self.converged else "done" if self.fixed else "converged"


class Laps:
    """A clock whose laps belong to layers; on CUDA the device is waited for only when it is read."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._places = device, list[int]()
        self._marks = [self._mark()]

    def lap(self, place: int) -> None:
        """What was done since the last one was done for the layer at this place."""
        self._places.append(place)
        self._marks.append(self._mark())

    def seconds(self, layers: int) -> list[float]:
        """Of each layer."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            laps = [start.elapsed_time(end) / 1000 for start, end in pairwise(self._marks)]
        else:
            laps = [end - start for start, end in pairwise(self._marks)]
        sums = [0.0] * layers
        for place, seconds in zip(self._places, laps, strict=True):
            sums[place] += seconds
        return sums

    def _mark(self) -> Any:
        """A moment, without making the device wait for it: on CUDA an event."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Level:
    """What certificates of one size are to deviations.

    Args:
        rms: the largest such certificate; the last level is for all that are larger too, the first for all smaller.
        median: of the ratio.
        low: at least 95 % of ratios are above it, by a conformal quantile, whichever of the decoders made the sample.
    """

    rms: float
    median: float
    low: float


@dataclass(frozen=True)
class Ratio:
    """What a flow's certificates are to the deviations of its samples, over samples of several decoders.

    The ratio depends on how large errors are, and a tolerance picks samples by their certificates: so it is told level
    by level, where it was measured so.

    Args:
        median: of all of them.
        low: the least 5 % point of any of the decoders.
        high: likewise the largest 95 % point.
        polished_median: of samples iterated on as polishing does, whose errors are told otherwise.
        polished_low: likewise.
        samples: of each decoder.
        levels: by the size of the certificate, ascending; none in files of before.
        polished_levels: likewise of samples that were polished.
    """

    median: float
    low: float
    high: float
    polished_median: float
    polished_low: float
    samples: int
    levels: tuple[Level, ...] = ()
    polished_levels: tuple[Level, ...] = ()

    def of(self, name: Literal["median", "low"], rms: Tensor, polished: Tensor) -> Tensor:
        """(B,) the ratio, or what it is above, of samples by their certificates and whether they were polished.

        The latter is no more for polished samples than for others, by which they were polished when it was measured.
        """
        plain = _by_level(self.levels or (Level(math.inf, self.median, self.low),), name, rms)
        every = (Level(math.inf, self.polished_median, self.polished_low),)
        after = _by_level(self.polished_levels or every, name, rms)
        if name == "low" and self.polished_levels:
            after = after.minimum(plain)
        return torch.where(polished, after, plain)


def _by_level(levels: Sequence[Level], name: str, rms: Tensor) -> Tensor:
    edges = rms.new_tensor([level.rms for level in levels[:-1]])
    return rms.new_tensor([getattr(level, name) for level in levels])[torch.bucketize(rms, edges)]


@dataclass(frozen=True)
class Certificate:
    """How far the samples of a batch are from the exact ones, estimated; see `harness.decoders.certificate`.

    Args:
        rms: (B,) root mean square of ``encode(sample) - latents`` over each sample's numbers, on the prior's scale.
        largest: (B,) its maximum.
        polished: (B,) True for the samples that were decoded on, since they were above the tolerance.
        ratio: None for a flow whose certificates are not calibrated: nothing is then known of deviations.
        tolerance: that was asked for, in deviation; None for none.
    """

    rms: Tensor
    largest: Tensor
    polished: Tensor
    ratio: Ratio | None = None
    tolerance: float | None = None

    @property
    def estimate(self) -> Tensor | None:
        """(B,) the deviation from the exact sample, estimated: RMSE in image units."""
        return self._over("median")

    @property
    def upper(self) -> Tensor | None:
        """(B,) what 95 % of the deviations are below, as far as calibration goes; no bound."""
        return self._over("low")

    def _over(self, name: Literal["median", "low"]) -> Tensor | None:
        """The certificate over this of its kind of samples."""
        return None if self.ratio is None else self.rms / self.ratio.of(name, self.rms, self.polished)

    @property
    def above(self) -> Tensor:
        """(B,) True where `upper` is above the tolerance, or not finite."""
        if self.upper is None or self.tolerance is None:
            return torch.zeros_like(self.polished)
        return ~(self.upper <= self.tolerance)

    @property
    def counts(self) -> dict[str, float]:
        """As plain numbers, for `told`: how many were polished and are above, and the largest of each figure."""
        figures = {"rms": self.rms, "estimate": self.estimate, "upper": self.upper}
        largest = {name: float(of.nan_to_num(torch.inf).max()) for name, of in figures.items() if of is not None}
        return {"polished": int(self.polished.sum()), "above": int(self.above.sum()), **largest}

    @classmethod
    def joined(cls, parts: Sequence[Certificate]) -> Certificate:
        """That of several batches of one decode."""
        rms, largest, polished = (
            torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("rms", "largest", "polished")
        )
        return cls(rms, largest, polished, parts[0].ratio, parts[0].tolerance)

    def __str__(self) -> str:
        return told([self.counts], self.tolerance)


def told(parts: Sequence[Mapping[str, float]], tolerance: float | None) -> str:
    """What the `Certificate.counts` of all parts of the samples come to."""
    if not all("upper" in part for part in parts):
        largest = max(part["rms"] for part in parts)
        return f"certificates up to {largest:.2g}; what that is in deviation is not calibrated"
    estimate, upper = (max(part[name] for part in parts) for name in ("estimate", "upper"))
    said = f"deviations estimated up to {estimate:.2g} (95 % of such samples are below {upper:.2g})"
    if tolerance is None:
        return said
    polished, above = (int(sum(part[name] for part in parts)) for name in ("polished", "above"))
    return f"{said}; {polished} polished, {above} above {tolerance:g}"


@dataclass(frozen=True)
class DecodeResult:
    """What a decode returns.

    Args:
        tokens: (B, L, D) samples in raster order.
        images: (B, C, H, W) the same as images, or None when the flow's data are no images.
        certificate: of every sample, where the decoder certifies.
    """

    tokens: Tensor
    images: Tensor | None
    layers: list[LayerTrace] = field(default_factory=list)
    certificate: Certificate | None = None

    @property
    def converged(self) -> bool:
        """Whether no layer was given up; one whose fixed work is done was not, see `state`."""
        return all(trace.converged for trace in self.layers)

    @property
    def state(self) -> State:
        """The least certain of its layers' states."""
        return worst(trace.state for trace in self.layers)

    @property
    def depth(self) -> int:
        return sum(trace.depth for trace in self.layers)

    @property
    def token_evaluations(self) -> float:
        return sum(trace.token_evaluations for trace in self.layers)

    @property
    def fpe(self) -> float:
        """Forward-pass equivalents: token evaluations over those of one forward pass.

        The last token parametrises nothing, so a forward pass, and a sequential decode, evaluates L - 1 tokens a
        layer: sequential is 1 by definition and Jacobi with 3 iterations in every layer is 3.
        """
        return self.token_evaluations / (len(self.layers) * (self.tokens.shape[1] - 1))
