"""Jacobi iteration of a whole layer, and the decoder that uses it in every layer (UJD).

``x[l] <- z_in[l] * exp(log_scale(x[<l])) + shift(x[<l])`` for all tokens at once. The map is strictly causal, so
after t iterations the first t + 1 tokens are exact and L - 1 iterations suffice whatever the start (arXiv 2505.24791,
Prop. 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from harness.decoders.decoder import Decoder, LayerTrace, decoders
from harness.decoders.fits import Calibration, LayerFit, calibration_of
from harness.decoders.initial import INITIAL
from harness.decoders.micro_batches import SEQUENTIAL, Footprint
from harness.decoders.sequential import solve_sequential
from harness.decoders.solver import footprint, solve_windows
from harness.decoders.stopping import NORMS, SCOPES
from harness.decoders.windows import Blocks, Schedule
from harness.errors import HarnessError, unknown
from harness.flows.precision import half_dtype
from harness.flows.protocols import CausalFlow, CausalLayer, Condition

FITTED = "fitted"


@dataclass(kw_only=True)
class JacobiDecoder(Decoder):
    """Options shared by decoders that iterate.

    Args:
        initial: the first iterate: ``"zeros"``, ``"normal"``, ``"input"``, the layer's own input, or ``"fitted"``, a
            linear prediction from it and the class.
        correction: ``"fitted"`` adds to every update a prediction of the error that it leaves, see
            `harness.decoders.fits`; None for the plain iteration.
        calibration: the file of what was fitted; None for the one that ``harness calibrate`` stored for the checkpoint.
        norm: of the update, by a name in `stopping.NORMS`; ``"inf"`` is the papers'.
        scope: ``"batch"`` stops when every sample has converged; with ``"sample"`` each sample stops by itself, so that
            no sample changes another's result.
        max_iterations: cap on the iterations of a layer; None for L - 1, at which every sample is exact.
        network_dtype: ``"bfloat16"`` or ``"float16"`` for the networks of layers that are iterated, on a copy of their
            weights; iterates, updates and residuals keep the latents' dtype. With tau 0, which asks for the exact
            sample, and in layers decoded sequentially the networks stay as they are. None for the flow's own.
    """

    initial: str = "zeros"
    correction: str | None = None
    calibration: Any = None
    norm: str = "inf"
    scope: str = "batch"
    max_iterations: int | None = None
    network_dtype: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network_dtype is not None:
            half_dtype(self.network_dtype)
        if self.correction not in (None, FITTED):
            raise unknown("correction", str(self.correction), [FITTED])
        check_iteration(self.initial, self.norm, self.scope, self.max_iterations)

    def schedule(self, layer: CausalLayer) -> Schedule | None:
        """The windows that a layer is decoded by, all of its tokens at once if not overridden; None is sequential."""
        return Blocks(layer.num_tokens, self.tau, self.max_iterations)

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Evaluate the windows of the layer's schedule."""
        schedule = self.schedule(layer)
        if schedule is None:
            return solve_sequential(layer, inputs, condition)
        return self.solve_schedule(layer, inputs, condition, schedule)

    def footprint(self, layer: CausalLayer) -> Footprint:
        """By the layer's schedule."""
        schedule = self.schedule(layer)
        return SEQUENTIAL if schedule is None else footprint(schedule, layer, self.scope)

    def solve_jacobi(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Iterate over all tokens at once until the norm of the update falls below tau, or is 0, or at the cap."""
        schedule = Blocks(layer.num_tokens, self.tau, self.max_iterations)
        return self.solve_schedule(layer, inputs, condition, schedule)

    def solve_schedule(
        self,
        layer: CausalLayer,
        inputs: Tensor,
        condition: Condition,
        schedule: Schedule,
        *,
        initial: str | None = None,
        clamp: float | None = None,
        max_calls: int | None = None,
    ) -> tuple[Tensor, LayerTrace]:
        """Solve a layer by the windows of a schedule, with this decoder's start, corrections and stopping rule."""
        return solve_windows(
            layer.in_dtype(half_dtype(self.network_dtype)) if self.network_dtype and self.tau else layer,
            inputs,
            condition,
            self.start(layer, inputs, condition, initial or self.initial),
            schedule,
            norm=self.norm,
            scope=self.scope,
            clamp=clamp,
            max_calls=max_calls,
            correction=self.fit(layer).correction if self.correction else None,
        )

    def start(self, layer: CausalLayer, inputs: Tensor, condition: Condition, initial: str) -> Tensor:
        """(B, L, D) the first iterate, a new tensor."""
        if initial == FITTED:
            return self.fit(layer).guess(inputs, condition.labels)
        return INITIAL[initial](layer, inputs)

    @property
    def needs_calibration(self) -> bool:
        """Whether something fitted is asked for."""
        return FITTED in (self.initial, self.correction)

    @property
    def reads_fits(self) -> bool:
        """When something fitted is asked for."""
        return self.needs_calibration

    def fits_digest(self, flow: CausalFlow, batch: int) -> str:
        """Of the calibration."""
        return calibration_of(flow, self.calibration).content

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        """With the flow's calibration, when something fitted is asked for."""
        if not self.needs_calibration:
            return self
        return replace(self, calibration=calibration_of(flow, self.calibration))

    def fit(self, layer: CausalLayer) -> LayerFit:
        """What was fitted to a layer."""
        if not isinstance(self.calibration, Calibration):
            raise HarnessError("what was fitted is known only once the decoder is bound to a flow")
        return self.calibration.layers[layer.number]


def check_iteration(initial: str, norm: str, scope: str, max_iterations: int | None) -> None:
    """Check what a Jacobi iteration is told.

    Raises:
        HarnessError: an unknown name, or a cap that is no number from 1.
    """
    for kind, name, known in (
        ("initial guess", initial, [*INITIAL, FITTED]),
        ("norm", norm, NORMS),
        ("scope", scope, SCOPES),
    ):
        if name not in known:
            raise unknown(kind, str(name), known)
    if max_iterations is not None and (not isinstance(max_iterations, int) or max_iterations < 1):
        raise HarnessError(f"max_iterations must be a number from 1, not {max_iterations!r}")


@decoders.register("ujd")
@dataclass(kw_only=True)
class UniformJacobi(JacobiDecoder):
    """Uniform Jacobi decoding: Jacobi iteration in every layer (SeJD, arXiv 2505.24791, Sec. 3.4)."""
