"""Frontier decoding: Jacobi iteration over a moving window whose converged prefix is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from harness.decoders.decoder import Count, LayerTrace, decoders
from harness.decoders.jacobi import JacobiDecoder
from harness.decoders.windows import Blocks, Frontier, Slide, Windows
from harness.errors import HarnessError
from harness.flows.protocols import CausalLayer, Condition


@decoders.register("frontier")
@dataclass(kw_only=True)
class FrontierDecoder(JacobiDecoder):
    """Jacobi over a moving window; what has converged is frozen into the cache and never evaluated again.

    Each call freezes at least one token, so a layer takes at most L - 1 calls and L(L - 1)/2 token evaluations. Window
    1 is sequential decoding; a window of the whole layer with ``advance="window"`` is UJD. The norm is each token's
    own, and `scope` says whether the batch has one frontier or each sample its own.

    Args:
        window: tokens per call; None for all that are left.
        advance: ``"converged"`` moves the window past the tokens whose update was below tau, and one more;
            ``"window"`` only when all of the window has converged (Gauss-Seidel-Jacobi); a number moves it by that
            stride whatever the update, and must divide the window. With tau 0 a stride is exact, and so ignored.
        max_iterations: calls per window with ``advance="window"``, else calls per layer.
    """

    window: Count | None = 32
    advance: Literal["converged", "window"] | Count = "converged"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.advance, int) and (self.window is None or self.window % self.advance):
            raise HarnessError(f"advance {self.advance} must be a divisor of the window, {self.window}")

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        max_calls = None if self.advance == "window" else self.max_iterations
        return self.solve_windows(layer, inputs, condition, self.windows(layer), max_calls=max_calls)

    def most_token_evaluations(self, num_tokens: int) -> int:
        """L(L + 1)/2, unless nothing is frozen inside a window."""
        return num_tokens**2 if self.advance == "window" else num_tokens * (num_tokens + 1) // 2

    def windows(self, layer: CausalLayer) -> Windows:
        window = self.window or layer.num_tokens
        if self.advance == "window":
            return Blocks(window, self.tau, self.max_iterations, mode="frontier")
        if self.advance == "converged" or self.tau == 0:
            return Frontier(window, self.tau)
        return Slide(window, int(self.advance), self.tau)
