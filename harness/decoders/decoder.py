"""What a decoder is: a way to solve one layer, and the walk through all of them.

A decoder inverts a flow layer by layer, from the prior to the data. Most only say how one layer is solved; the walk,
the trace, the clock and the fallback live here, once.
"""

from __future__ import annotations

import inspect
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.decoders.micro_batches import SEQUENTIAL, Footprint, Room, parse_bytes
from harness.decoders.trace import DecodeResult, LayerTrace
from harness.errors import HarnessError, unknown
from harness.flows.graphs import graphed
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, Guidance
from harness.flows.tap import untapped
from harness.registry import Registry

__all__ = ["FALLBACKS", "DecodeResult", "Decoder", "LayerTrace", "build_decoder", "decoders"]

decoders: Registry[type[Decoder]] = Registry("decoder", package="harness.decoders", group="harness.decoders")
"""Every decoder by name; see `build_decoder`."""

FALLBACKS = ("sequential", "non-finite", "leave")


@dataclass(kw_only=True)
class Decoder(ABC):
    """A way to draw samples from a flow, given its latents.

    Subclasses are keyword-only dataclasses whose fields are their options; they implement `solve`.

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

    takes_tau: ClassVar[bool] = True

    tau: float = 0.5
    fallback: str = "sequential"
    max_memory: Any = None
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if not (self.tau >= 0 and math.isfinite(self.tau)):
            raise HarnessError(f"tau must be 0 or more, not {self.tau}")
        if self.fallback not in FALLBACKS:
            raise unknown("fallback", str(self.fallback), FALLBACKS)

    @abstractmethod
    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Invert one layer.

        Args:
            layer: reached only through `new_cache` and `affine`; `layer.number` is its place in decoding order.
            inputs: (B, L, D) the layer's inputs z_in in its own order; not to be modified.
            condition: to be passed on to the layer.

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
        """The decoder that decodes a batch of this flow: itself, unless it has to know the flow or the batch first.

        Raises:
            HarnessError: options that do not fit the flow.
        """
        return self

    @property
    def reads_fits(self) -> bool:
        """Whether it decodes by something that was fitted to the flow or tuned for it."""
        return False

    def fits_digest(self, flow: CausalFlow, batch: int) -> str:
        """Digest of what it reads; what is not stored yet is made first. Part of a measured cell's identity."""
        return ""

    def options(self) -> dict[str, Any]:
        """The options this decoder was built with, as plain values."""
        return asdict(self) if is_dataclass(self) else dict(vars(self))

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
            flow: any flow of causal layers.
            latents: (B, L, D) standard normal numbers, as from `flow.sample_latents`; never modified.
            labels: (B,) classes, negative for none; None when the flow has none or no sample has one.
            guidance: classifier-free guidance, or None.

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
        room = decoder._room(flow, latents, condition)
        if self.cuda_graphs and (latents.device.type != "cuda" or room is not None):
            raise HarnessError("cuda_graphs needs a CUDA device, and keeps memory that max_memory would have to bound")
        with torch.inference_mode():  # a fifth faster than no_grad where the calls are small
            tokens, layers = decoder._walk(flow, latents, condition, room)
        tokens = tokens.clone()  # an ordinary tensor again, which gradients may be taken of
        return DecodeResult(tokens=tokens, images=flow.to_images(tokens), layers=layers)

    def _room(self, flow: CausalFlow, latents: Tensor, condition: Condition) -> Room | None:
        """Whether there is room is known before any work is done; what is asked for that is no part of the decode."""
        if self.max_memory is None:
            return None
        room = Room(parse_bytes(self.max_memory), latents, condition)
        for layer in untapped(flow).layers:
            room.plan(layer, self.footprint(layer))
            if self.fallback != "leave":
                room.plan(layer, SEQUENTIAL)
        return room

    def _walk(
        self, flow: CausalFlow, latents: Tensor, condition: Condition, room: Room | None
    ) -> tuple[Tensor, list[LayerTrace]]:
        tokens = flow.scale_latents(latents)
        clock = _LayerClock(tokens.device)
        traces = []
        for layer in flow.layers:
            with clock:
                solved = graphed(layer) if self.cuda_graphs and untapped(flow) is flow else layer
                tokens, trace = self._solve_or_fall_back(solved, layer.arrange(tokens), condition, room)
                tokens = layer.restore(tokens)
            traces.append(trace)
        return tokens, [replace(trace, wall_s=wall_s) for trace, wall_s in zip(traces, clock.seconds(), strict=True)]

    def _solve_or_fall_back(
        self, layer: CausalLayer, inputs: Tensor, condition: Condition, room: Room | None
    ) -> tuple[Tensor, LayerTrace]:
        solve = self.solve if room is None else room.within(self.solve, self.footprint(layer))
        tokens, trace = solve(layer, inputs, condition)
        wanted = self.fallback == "sequential" or (self.fallback == "non-finite" and "non-finite" in trace.flags)
        if trace.converged or trace.mode == "sequential" or not wanted:
            return tokens, trace
        from harness.decoders.sequential import solve_sequential

        redecode = solve_sequential if room is None else room.within(solve_sequential, SEQUENTIAL)
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

    Raises:
        HarnessError: no such decoder, an option that it does not have, or a value out of range.

    Example:
        >>> build_decoder("sejd", tau=0.1).tau
        0.1
    """
    cls = decoders.get(name)
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for option in options:
        if option not in known:
            raise unknown(f"option of decoder '{name}':", option, known)
    try:
        return cls(**options)
    except TypeError as error:
        raise HarnessError(f"decoder '{name}' cannot be built from {options}: {error}") from error


class _LayerClock:
    """Seconds of each layer, without making the device wait between layers: on CUDA the events are read at the end."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[Any, Any]] = []

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *exc: object) -> None:
        self.marks.append((self._start, self._now()))

    def seconds(self) -> list[float]:
        """Seconds of each layer so far; on CUDA this waits for the last one."""
        if not self.cuda:
            return [end - start for start, end in self.marks]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in self.marks]
