"""A fixed number of Jacobi iterations from a fitted guess, each followed by a fitted correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field
from torch import Tensor

from harness.decoders.decoder import Count, Fallback, LayerTrace, decoders
from harness.decoders.jacobi import FITTED, Corrected, Initial, JacobiDecoder
from harness.decoders.windows import Blocks
from harness.flows.protocols import CausalLayer, Condition
from harness.options import several


@decoders.register("fitted")
@dataclass(kw_only=True)
class FittedDecoder(JacobiDecoder):
    """A fixed budget of Jacobi iterations per layer, started and corrected by linear maps fitted to the flow.

    The guess replaces two or more iterations and the correction one or two of each, so that one iteration a layer, one
    forward pass in all, is often enough; `harness calibrate` fits both. The budget is spent whatever the update, and
    a layer that has spent it is done. Tau is ignored, except that tau 0 asks for the exact sample and is given as many
    iterations as that takes, and that ``fallback="sequential"`` decodes again what the last update left above tau.

    Args:
        iterations: per layer in decoding order; the last number holds for all layers after it.
    """

    takes_tau = False

    iterations: Annotated[tuple[Count, ...], Field(min_length=1), BeforeValidator(several)] = (3, 1)
    initial: Initial = FITTED
    correction: Corrected | None = FITTED
    fallback: Fallback = "non-finite"

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        if self.tau == 0:
            return super().solve(layer, inputs, condition)
        budget = self.iterations[min(layer.number, len(self.iterations)) - 1]
        windows = Blocks(
            layer.num_tokens, self.tau, min(budget, self.max_iterations or budget), adaptive=False, mode="fitted"
        )
        return self.solve_windows(layer, inputs, condition, windows)
