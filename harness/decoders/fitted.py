"""A fixed number of Jacobi iterations from a fitted guess, each followed by a fitted correction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.decoders.decoder import LayerTrace, decoders
from harness.decoders.jacobi import FITTED, JacobiDecoder
from harness.decoders.windows import Blocks
from harness.errors import HarnessError
from harness.flows.protocols import CausalLayer, Condition


@decoders.register("fitted")
@dataclass(kw_only=True)
class FittedDecoder(JacobiDecoder):
    """A fixed budget of Jacobi iterations per layer, started and corrected by linear maps fitted to the flow.

    The guess replaces two or more iterations and the correction one or two of each, so that one iteration a layer, one
    forward pass in all, is often enough; `harness calibrate` fits both. The budget is spent whatever the update: tau
    only says what the trace calls converged, except that tau 0 asks for the exact sample and is given as many
    iterations as that takes.

    Args:
        iterations: per layer in decoding order; the last number holds for all layers after it.
    """

    iterations: tuple[int, ...] = (3, 1)
    initial: str = FITTED
    correction: str | None = FITTED
    fallback: str = "non-finite"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.iterations = tuple(self.iterations) if isinstance(self.iterations, (tuple, list)) else (self.iterations,)
        if not self.iterations or any(not isinstance(number, int) or number < 1 for number in self.iterations):
            raise HarnessError(f"iterations must be numbers from 1, not {list(self.iterations)}")

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Spend the layer's budget."""
        if self.tau == 0:
            return self.solve_jacobi(layer, inputs, condition)
        budget = self.iterations[min(layer.number, len(self.iterations)) - 1]
        schedule = Blocks(
            layer.num_tokens, self.tau, min(budget, self.max_iterations or budget), adaptive=False, mode="fitted"
        )
        return self.solve_schedule(layer, inputs, condition, schedule)
