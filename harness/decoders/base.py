"""What a decoder is: a way to solve one layer, and the walk through all of them.

A decoder inverts a flow layer by layer, from the prior to the data. Most only say how one layer is solved; the walk,
the trace, the clock and the fallback live here, once.
"""

from __future__ import annotations

import inspect
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.errors import HarnessError, unknown
from harness.flows.base import CausalFlow, CausalLayer, Condition, Guidance
from harness.registry import Registry

decoders: Registry[type[Decoder]] = Registry("decoder", package="harness.decoders", group="harness.decoders")
"""Every decoder by name; see `build_decoder`."""

FALLBACKS = ("sequential", "non-finite", "leave")


@dataclass(frozen=True)
class LayerTrace:
    """How one layer was inverted.

    Args:
        layer: place in decoding order, 1 is next to the prior.
        block: the checkpoint's own index.
        mode: the method that produced the tokens, such as ``"sequential"`` or ``"jacobi"``.
        iterations: of that method; the steps L - 1 when it is sequential.
        converged: the tokens satisfy the stopping rule, or are exact.
        residuals: the stopping rule's norm of the update, one per iteration; empty when nothing iterates.
        token_evaluations: tokens pushed through the layer's network, per sample, every pass and attempt counted.
        depth: network calls that had to follow each other, every attempt counted.
        flags: what was noticed: ``"non-finite"``, ``"cap"``, ``"growing"``, ``"redecoded"``.
        wall_s: seconds.
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


@dataclass(frozen=True)
class DecodeResult:
    """What a decode returns.

    Args:
        tokens: (B, L, D) samples in raster order.
        images: (B, C, H, W) the same as images, or None when the flow's data are no images.
        layers: one trace per layer, in decoding order.
    """

    tokens: Tensor
    images: Tensor | None
    layers: list[LayerTrace] = field(default_factory=list)

    @property
    def converged(self) -> bool:
        """Whether every layer converged."""
        return all(trace.converged for trace in self.layers)

    @property
    def depth(self) -> int:
        """Network calls that had to follow each other, summed over layers."""
        return sum(trace.depth for trace in self.layers)

    @property
    def token_evaluations(self) -> float:
        """Tokens pushed through the layers' networks, per sample."""
        return sum(trace.token_evaluations for trace in self.layers)

    @property
    def fpe(self) -> float:
        """Forward-pass equivalents: token evaluations over those of one forward pass.

        The last token parametrises nothing, so a forward pass, and a sequential decode, evaluates L - 1 tokens a
        layer: sequential is 1 by definition and Jacobi with 3 iterations in every layer is 3.
        """
        return self.token_evaluations / (len(self.layers) * (self.tokens.shape[1] - 1))


@dataclass(kw_only=True)
class Decoder(ABC):
    """A way to draw samples from a flow, given its latents.

    Subclasses are keyword-only dataclasses whose fields are their options; they implement `solve`.

    Args:
        tau: stopping threshold of whatever iterates; 0 asks for the exact sample. A method that does not iterate
            ignores it and says so with ``takes_tau = False``.
        fallback: what happens to a layer that did not converge: ``"sequential"`` decodes it again, exactly;
            ``"non-finite"`` does so only when it overflowed; ``"leave"`` never does. The trace tells in any case.
    """

    takes_tau: ClassVar[bool] = True

    tau: float = 0.5
    fallback: str = "sequential"

    def __post_init__(self) -> None:
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

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        """The decoder that decodes a batch of this flow: itself, unless it has to know the flow or the batch first.

        Raises:
            HarnessError: options that do not fit the flow.
        """
        return self

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
            HarnessError: latents of the wrong shape, or labels that the flow does not have.
        """
        if latents.ndim != 3 or latents.shape[1:] != (flow.num_tokens, flow.token_dim) or not len(latents):
            raise HarnessError(
                f"expected latents of shape (B, {flow.num_tokens}, {flow.token_dim}) with B at least 1, "
                f"got {tuple(latents.shape)}"
            )
        condition = flow.condition(len(latents), labels, guidance)
        decoder = self.bind(flow, len(latents))
        with torch.inference_mode():  # a fifth faster than no_grad where the calls are small
            tokens, layers = decoder._walk(flow, latents, condition)
        tokens = tokens.clone()  # an ordinary tensor again, which gradients may be taken of
        return DecodeResult(tokens=tokens, images=flow.to_images(tokens), layers=layers)

    def _walk(self, flow: CausalFlow, latents: Tensor, condition: Condition) -> tuple[Tensor, list[LayerTrace]]:
        tokens = flow.scale_latents(latents)
        clock = _LayerClock(tokens.device)
        traces = []
        for layer in flow.layers:
            with clock:
                tokens, trace = self._solve_or_fall_back(layer, layer.arrange(tokens), condition)
                tokens = layer.restore(tokens)
            traces.append(trace)
        return tokens, [replace(trace, wall_s=wall_s) for trace, wall_s in zip(traces, clock.seconds(), strict=True)]

    def _solve_or_fall_back(
        self, layer: CausalLayer, inputs: Tensor, condition: Condition
    ) -> tuple[Tensor, LayerTrace]:
        tokens, trace = self.solve(layer, inputs, condition)
        wanted = self.fallback == "sequential" or (self.fallback == "non-finite" and "non-finite" in trace.flags)
        if trace.converged or trace.mode == "sequential" or not wanted:
            return tokens, trace
        from harness.decoders.sequential import solve_sequential

        tokens, exact = solve_sequential(layer, inputs, condition)
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
