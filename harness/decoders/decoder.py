"""What a decoder is: a way to solve one layer, and the walk through all of them.

A decoder inverts a flow layer by layer, from the prior to the data. Most only say how one layer is solved; the walk,
the trace, the clock and the fallback live here, once.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from harness.decoders.calibration import find_calibration
from harness.decoders.certificate import Walked, certifiable, ratio_of, require_certifiable
from harness.decoders.micro_batches import SEQUENTIAL, Bytes, Footprint, MicroBatches, parse_bytes
from harness.decoders.solver import solve_sequential
from harness.decoders.stored import called
from harness.decoders.trace import Certificate, DecodeResult, Laps, LayerTrace, Ratio
from harness.errors import HarnessError
from harness.flows.graphs import captures, graphed
from harness.flows.precision import products
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, Guidance
from harness.flows.tap import untapped
from harness.options import build
from harness.registry import Registry

decoders: Registry[type[Decoder]] = Registry("decoder", package="harness.decoders", group="harness.decoders")
"""Every decoder by name; see `build_decoder`."""

Fallback = Literal["sequential", "non-finite", "leave"]
Count = Annotated[int, Field(ge=1, strict=True)]
"""A whole number from 1."""

CALIBRATION, LEARNED_TOO = "calibration", "calibration with learned corrections"
CERTIFICATE, LAYER_ERRORS = "certificate", "what iteration leaves of each layer"


@dataclass(frozen=True)
class ScheduleRequest:
    """A schedule that has to be tuned, for batches of a size within a budget; see `harness.decoders.schedule`."""

    batch: int
    budget: float | None


Missing = str | ScheduleRequest
"""What `harness.fitting.prepare` makes: one of the names above, or a schedule."""


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
        cuda_graphs: on CUDA, replay network calls as captured graphs, see `harness.flows.graphs`: their memory is kept
            from decode to decode. A decode that is watched from outside, or under `max_memory`, is made without.
        certify: the deviation, RMSE to the exact sample, that samples should not be above: one forward pass estimates
            that of each, and those that may be above are decoded on, see `harness.decoders.certificate`; ``"state"``
            only tells. None for no certificate.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)
    takes_tau: ClassVar[bool] = True

    tau: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    fallback: Fallback = "sequential"
    max_memory: Bytes | None = None
    cuda_graphs: bool = True
    certify: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["state"] | None = None

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

    @property
    def reads(self) -> bool:
        """Whether anything kept for the flow changes what it returns: fits, or what certificates are to deviations."""
        return self.reads_fits or self.certify is not None

    def needs(self, flow: CausalFlow, batch: int) -> list[Missing]:
        """All that is to be made: what is `missing`, and what the certificate is calibrated by."""
        missing = self.missing(flow, batch)
        made = {CALIBRATION, LEARNED_TOO} & {*missing}
        if self.certified_to is None or ratio_of(flow) is not None or made or not certifiable(flow):
            return missing
        return [*missing, CERTIFICATE if find_calibration(flow) else CALIBRATION]

    def digest(self, flow: CausalFlow, batch: int) -> str | None:
        """Digest of all that it reads, or None: as `fits_digest`, and what the certificate is calibrated by."""
        found = self.fits_digest(flow, batch) if self.reads_fits else None
        ratio = None if self.certify is None else ratio_of(flow)
        return found if ratio is None else hashlib.sha256(f"{found} {ratio}".encode()).hexdigest()[:16]

    @property
    def certified_to(self) -> float | None:
        """The deviation that it certifies samples to; None where it only states it."""
        return None if isinstance(self.certify, str) else self.certify

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
        with torch.inference_mode(), products(flow.tf32):  # a fifth faster than no_grad where the calls are small
            tokens, layers, certificate = decoder._walk(flow, latents, condition, parts)
        tokens = tokens.clone()  # an ordinary tensor again, which gradients may be taken of
        return DecodeResult(tokens=tokens, images=flow.to_images(tokens), layers=layers, certificate=certificate)

    def _calibrated(self, flow: CausalFlow) -> Ratio | None:
        """What its certificates are calibrated by, after it was seen that it can give any."""
        require_certifiable(flow)
        if self.max_memory is not None:
            raise HarnessError("certify keeps the output of every layer, which max_memory would have to bound")
        ratio = ratio_of(flow)
        if ratio is None and self.certified_to is not None:
            raise HarnessError(
                f"certificates of {flow.source or 'this flow'} are not calibrated, so no deviation is known from them: "
                f"run `harness calibrate {called(flow)}`, or call harness.fitting.prepare(decoder, flow, batch)"
            )
        return ratio

    def captured(self, flow: CausalFlow) -> bool:
        """Whether it replays captured calls of this flow."""
        return self.cuda_graphs and self.max_memory is None and captures(flow)

    def called(self, flow: CausalFlow) -> Sequence[CausalLayer]:
        """The flow's layers as a decode calls them: their calls replayed, where they are captured."""
        return graphed(flow) if self.captured(flow) else flow.layers

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
    ) -> tuple[Tensor, list[LayerTrace], Certificate | None]:
        ratio = None if self.certify is None else self._calibrated(flow)
        tokens, certificate = flow.scale_latents(latents), None
        outputs, traces, laps = list[Tensor](), list[LayerTrace](), Laps(latents.device)
        for place, layer in enumerate(self.called(flow)):
            tokens, trace = self._solve_or_fall_back(layer, layer.arrange(tokens), condition, parts)
            if self.certify is not None:
                outputs.append(tokens)
            tokens = layer.restore(tokens)
            traces.append(trace)
            laps.lap(place)
        if self.certify is not None:
            scaled, calibration = flow.scale_latents(latents), find_calibration(flow)
            walked = Walked(flow.layers, scaled, condition, outputs, traces, laps, calibration)
            certificate = walked.certify(self.certified_to, ratio)
            tokens = walked.tokens
        seconds = laps.seconds(len(traces))
        layers = [replace(trace, wall_s=wall_s) for trace, wall_s in zip(traces, seconds, strict=True)]
        return tokens, layers, certificate

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
