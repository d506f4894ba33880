"""What a decoder is: a way to solve one layer, and the walk through all of them.

A decoder inverts a flow layer by layer, from the prior to the data. Most only say how one layer is solved; the walk,
the trace, the clock and the fallback live here, once.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from harness.decoders.micro_batches import SEQUENTIAL, Bytes, Footprint, MicroBatches, parse_bytes
from harness.decoders.solver import solve_sequential
from harness.decoders.trace import DecodeResult, LayerTrace
from harness.errors import HarnessError
from harness.flows.graphs import graphed
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, Guidance
from harness.flows.tap import untapped
from harness.options import build
from harness.registry import Registry

decoders: Registry[type[Decoder]] = Registry("decoder", package="harness.decoders", group="harness.decoders")
"""Every decoder by name; see `build_decoder`."""

Fallback = Literal["sequential", "non-finite", "leave"]
Count = Annotated[int, Field(ge=1, strict=True)]
"""A whole number from 1."""

CALIBRATION: Literal["calibration"] = "calibration"
LEARNED_TOO: Literal["calibration with learned corrections"] = "calibration with learned corrections"


@dataclass(frozen=True)
class ScheduleRequest:
    """A schedule that has to be tuned, for batches of a size within a budget; see `harness.decoders.schedule`."""

    batch: int
    budget: float | None


Missing = Literal["calibration", "calibration with learned corrections"] | ScheduleRequest
"""What `harness.fitting.prepare` makes."""


@dataclass(kw_only=True)
class Decoder(ABC):
    """A way to draw samples from a flow, given its latents.

    Subclasses are keyword-only dataclasses whose fields are their options, checked by their types; they implement
    `solve`.

    Args:
        tau: stopping threshold of whatever iterates; 0 asks for the exact sample. A method that does not iterate
            ignores it and says so with ``takes_tau = False``.
        fallback: what happens to a layer that did not converge: ``"sequential"`` decodes it again, exactly;
            ``"non-finite"`` does so only when it overflowed; ``"leave"`` never does. The trace tells in any case.
        max_memory: the most that the tensors of a decode may take, weights apart, in bytes or as ``"2GB"``; None for no
            bound. The work is cut to stay under it and the results are those of the whole batch, see
            `harness.decoders.micro_batches`.
        cuda_graphs: replay network calls as captured CUDA graphs, see `harness.flows.graphs`: their memory is kept from
            decode to decode. A decode that is watched from outside is made without.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)
    takes_tau: ClassVar[bool] = True

    tau: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    fallback: Fallback = "sequential"
    max_memory: Bytes | None = None
    cuda_graphs: bool = False

    def __post_init__(self) -> None:  # noqa: B027 - a hook
        """For what the types of the options cannot check."""

    @abstractmethod
    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Invert one layer.

        Args:
            layer: reached only through `new_cache` and `affine`; `layer.number` is its place in decoding order.
            inputs: (B, L, D) the layer's inputs z_in in its own order; not to be modified.

        Returns:
            The layer's outputs, (B, L, D) in its own order, and how they were found; the walk adds the seconds.
        """

    def most_token_evaluations(self, num_tokens: int) -> int:
        """The most tokens of one sample that `solve` pushes through a layer's network, both passes of guidance as one.

        L iterations of L tokens, unless a method promises less; the contract holds it to that.
        """
        return num_tokens**2

    def footprint(self, layer: CausalLayer) -> Footprint:
        """What `solve` takes in memory; as much as any method, unless a method says that it takes less."""
        return Footprint(layer.num_tokens - 1)

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        """The decoder that decodes a batch of this flow: itself, unless it has to know the flow or the batch first."""
        return self

    @property
    def reads_fits(self) -> bool:
        """Whether it decodes by something that was fitted to the flow or tuned for it."""
        return False

    def missing(self, flow: CausalFlow, batch: int) -> list[Missing]:
        """What it would read for such a batch and is not there yet, in the order in which it is to be made."""
        return []

    def fits_digest(self, flow: CausalFlow, batch: int) -> str | None:
        """Digest of what it reads, or None. Part of a measured cell's identity."""
        return None

    def options(self) -> dict[str, Any]:
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @torch.no_grad()
    def decode(
        self,
        flow: CausalFlow,
        latents: Tensor,
        labels: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> DecodeResult:
        """Draw the samples that belong to some latents.

        Args:
            latents: (B, L, D) standard normal numbers, as from `flow.sample_latents`; never modified.
            labels: (B,) classes, negative for none; None when the flow has none or no sample has one.

        Raises:
            HarnessError: latents of the wrong shape, labels that the flow does not have, or a `max_memory` that is too
                little.
        """
        if latents.ndim != 3 or latents.shape[1:] != (flow.num_tokens, flow.token_dim) or not len(latents):
            raise HarnessError(
                f"expected latents of shape (B, {flow.num_tokens}, {flow.token_dim}) with B at least 1, "
                f"got {tuple(latents.shape)}"
            )
        condition = flow.condition(len(latents), labels, guidance)
        decoder = self.bind(flow, len(latents))
        parts = decoder._micro_batches(flow, latents, condition)
        if self.cuda_graphs and (latents.device.type != "cuda" or parts is not None):
            raise HarnessError("cuda_graphs needs a CUDA device, and keeps memory that max_memory would have to bound")
        with torch.inference_mode():  # a fifth faster than no_grad where the calls are small
            tokens, layers = decoder._walk(flow, latents, condition, parts)
        tokens = tokens.clone()  # an ordinary tensor again, which gradients may be taken of
        return DecodeResult(tokens=tokens, images=flow.to_images(tokens), layers=layers)

    def called(self, flow: CausalFlow) -> Sequence[CausalLayer]:
        """The flow's layers as a decode calls them: their calls replayed, where they are captured."""
        captured = self.cuda_graphs and untapped(flow) is flow
        return [graphed(layer) for layer in flow.layers] if captured else flow.layers

    def _micro_batches(self, flow: CausalFlow, latents: Tensor, condition: Condition) -> MicroBatches | None:
        """Whether there is room is known before any work is done; what is asked for that is no part of the decode."""
        if self.max_memory is None:
            return None
        parts = MicroBatches(parse_bytes(self.max_memory), latents, condition)
        for layer in untapped(flow).layers:
            parts.plan(layer, self.footprint(layer))
            if self.fallback != "leave":
                parts.plan(layer, SEQUENTIAL)
        return parts

    def _walk(
        self, flow: CausalFlow, latents: Tensor, condition: Condition, parts: MicroBatches | None
    ) -> tuple[Tensor, list[LayerTrace]]:
        tokens = flow.scale_latents(latents)
        traces, marks = [], [_mark(tokens.device)]
        for layer in self.called(flow):
            tokens, trace = self._solve_or_fall_back(layer, layer.arrange(tokens), condition, parts)
            tokens = layer.restore(tokens)
            traces.append(trace)
            marks.append(_mark(tokens.device))
        seconds = _seconds_between(marks, tokens.device)
        return tokens, [replace(trace, wall_s=wall_s) for trace, wall_s in zip(traces, seconds, strict=True)]

    def _solve_or_fall_back(
        self, layer: CausalLayer, inputs: Tensor, condition: Condition, parts: MicroBatches | None
    ) -> tuple[Tensor, LayerTrace]:
        solve = self.solve if parts is None else parts.within(self.solve, self.footprint(layer))
        tokens, trace = solve(layer, inputs, condition)
        wanted = self.fallback == "sequential" or (self.fallback == "non-finite" and "non-finite" in trace.flags)
        if trace.converged or trace.exact or not wanted:
            return tokens, trace
        redecode = solve_sequential if parts is None else parts.within(solve_sequential, SEQUENTIAL)
        tokens, exact = redecode(layer, inputs, condition)
        return tokens, replace(
            exact,
            residuals=trace.residuals,
            token_evaluations=trace.token_evaluations + exact.token_evaluations,
            depth=trace.depth + exact.depth,
            flags=tuple(dict.fromkeys((*trace.flags, "redecoded", *exact.flags))),
        )


def build_decoder(name: str, **options: Any) -> Decoder:
    """Build a decoder by its registered name, or by ``package.module:Class``.

    Example:
        >>> build_decoder("sejd", tau=0.1).tau
        0.1
    """
    return build(decoder_class(name), "decoder", name, options)


def decoder_class(name: str) -> type[Decoder]:
    """The class of a decoder. Raises HarnessError: there is no such, or it is no decoder."""
    cls = decoders.get(name)
    if not (isinstance(cls, type) and issubclass(cls, Decoder)):
        raise HarnessError(f"'{name}' is no decoder: a decoder is a subclass of harness.decoders:Decoder")
    return cls


def _mark(device: torch.device) -> Any:
    """A moment, without making the device wait for it: on CUDA an event, to be read at the end."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(marks: list[Any], device: torch.device) -> list[float]:
    """On CUDA this waits for the last mark."""
    if device.type != "cuda":
        return [end - start for start, end in pairwise(marks)]
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]
