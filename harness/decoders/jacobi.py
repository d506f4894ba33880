"""Jacobi iteration of a whole layer, and the decoder that uses it in every layer (UJD).

``x[l] <- z_in[l] * exp(log_scale(x[<l])) + shift(x[<l])`` for all tokens at once. The map is strictly causal, so
after t iterations the first t + 1 tokens are exact and L - 1 iterations suffice whatever the start (arXiv 2505.24791,
Prop. 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from harness.decoders.calibration import Calibration, LayerFit, calibration_of, find_calibration
from harness.decoders.decoder import CALIBRATION, LEARNED_TOO, Count, Decoder, LayerTrace, Missing, decoders
from harness.decoders.initial import INITIAL
from harness.decoders.micro_batches import SEQUENTIAL, Footprint
from harness.decoders.solver import Correction, footprint, solve_sequential, solve_windows
from harness.decoders.stopping import NormName, Scope
from harness.decoders.windows import Blocks, Windows
from harness.errors import HarnessError
from harness.flows.precision import HALF, HalfName
from harness.flows.protocols import CausalFlow, CausalLayer, Condition

FITTED: Literal["fitted"] = "fitted"
LEARNED: Literal["learned"] = "learned"
Corrected = Literal["fitted", "learned"]
Initial = Literal["zeros", "normal", "input", "fitted"]


@dataclass(kw_only=True)
class JacobiDecoder(Decoder):
    """Options shared by decoders that iterate.

    Args:
        initial: the first iterate: ``"zeros"``, ``"normal"``, ``"input"``, the layer's own input, or ``"fitted"``, a
            linear prediction from it and the class.
        correction: ``"fitted"`` adds to every update a linear prediction of the error that it leaves, ``"learned"`` one
            that goes by the layer's hidden state where that was found to be better, but not under guidance, see
            `harness.decoders.calibration`; None for the plain iteration.
        calibration: the file of what was fitted; None for the one that ``harness calibrate`` stored for the checkpoint.
        norm: of the update, by a name in `stopping.NORMS`; ``"inf"`` is the papers'.
        scope: ``"batch"`` stops when every sample has converged; with ``"sample"`` each sample stops by itself, so that
            no sample changes another's result.
        max_iterations: cap on the iterations of a layer; None for L - 1, at which every sample is exact.
        network_dtype: ``"bfloat16"`` or ``"float16"`` for the networks of layers that are iterated, on a copy of their
            weights; iterates, updates and residuals keep the latents' dtype. With tau 0, which asks for the exact
            sample, and in layers decoded sequentially the networks stay as they are. None for the flow's own.
    """

    initial: Initial = "zeros"
    correction: Corrected | None = None
    calibration: Calibration | Path | None = None
    norm: NormName = "inf"
    scope: Scope = "batch"
    max_iterations: Count | None = None
    network_dtype: HalfName | None = None

    def windows(self, layer: CausalLayer) -> Windows | None:
        """The windows that a layer is decoded by, all of its tokens at once if not overridden; None is sequential."""
        return Blocks(layer.num_tokens, self.tau, self.max_iterations)

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        windows = self.windows(layer)
        if windows is None:
            return solve_sequential(layer, inputs, condition)
        return self.solve_windows(layer, inputs, condition, windows)

    def footprint(self, layer: CausalLayer) -> Footprint:
        windows = self.windows(layer)
        if windows is None:
            return SEQUENTIAL
        plain = footprint(windows, layer, self.scope)
        if not self.reads_fits:
            return plain
        fit = self.fit(layer)
        gathered = max(of.gathered for of in (fit.guess.map, *fit.corrections))
        learned = fit.learned if self.correction == LEARNED else ()
        beside = max((gated.numbers for gated in learned), default=0) + math.ceil(gathered / plain.window)
        return replace(plain, beside=beside)

    def solve_windows(
        self,
        layer: CausalLayer,
        inputs: Tensor,
        condition: Condition,
        windows: Windows,
        *,
        initial: str | None = None,
        clamp: float | None = None,
        max_calls: int | None = None,
    ) -> tuple[Tensor, LayerTrace]:
        """Solve a layer by some windows, with this decoder's start, corrections and stopping rule."""
        initial = initial or self.initial
        if initial == FITTED:
            tokens = self.fit(layer).guess(inputs, condition.labels)
        else:
            tokens = INITIAL[initial](layer, inputs)
        return solve_windows(
            layer.in_dtype(HALF[self.network_dtype]) if self.network_dtype and self.tau else layer,
            inputs,
            condition,
            tokens,
            windows,
            norm=self.norm,
            scope=self.scope,
            clamp=clamp,
            max_calls=max_calls,
            correction=self._correction(layer, condition),
            judged=self.fallback == "sequential",
        )

    def _correction(self, layer: CausalLayer, condition: Condition) -> Correction | None:
        if self.correction is None:
            return None
        fit = self.fit(layer)
        return fit.gated if self.correction == LEARNED and condition.guidance is None else fit.linear

    @property
    def reads_fits(self) -> bool:
        return self.initial == FITTED or self.correction is not None

    def missing(self, flow: CausalFlow, batch: int) -> list[Missing]:
        if not self.reads_fits:
            return []
        found = find_calibration(flow, self.calibration)
        if self.correction == LEARNED:
            return [] if found is not None and found.complete else [LEARNED_TOO]
        return [] if found is not None else [CALIBRATION]

    def fits_digest(self, flow: CausalFlow, batch: int) -> str | None:
        if not self.reads_fits:
            return None
        found = self._calibration(flow)
        return found.learned_content if self.correction == LEARNED else found.content

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        return replace(self, calibration=self._calibration(flow)) if self.reads_fits else self

    def _calibration(self, flow: CausalFlow) -> Calibration:
        return calibration_of(flow, self.calibration, learned=self.correction == LEARNED)

    def fit(self, layer: CausalLayer) -> LayerFit:
        if not isinstance(self.calibration, Calibration):
            raise HarnessError("what was fitted is known only once the decoder is bound to a flow")
        return self.calibration.fit(layer)


@decoders.register("ujd")
@dataclass(kw_only=True)
class UniformJacobi(JacobiDecoder):
    """Uniform Jacobi decoding: Jacobi iteration in every layer (SeJD, arXiv 2505.24791, Sec. 3.4)."""
