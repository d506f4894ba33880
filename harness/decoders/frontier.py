"""Frontier decoding: Jacobi iteration over a moving window whose converged prefix is frozen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.decoders.decoder import LayerTrace, decoders
from harness.decoders.jacobi import JacobiDecoder
from harness.decoders.windows import Blocks, Frontier, Schedule, Slide
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

    window: int | None = 32
    advance: str | int = "converged"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and (not isinstance(self.window, int) or self.window < 1):
            raise HarnessError(f"window must be a number of tokens, at least 1, not {self.window!r}")
        stride = isinstance(self.advance, int) and not isinstance(self.advance, bool)
        if not stride and self.advance not in ("converged", "window"):
            raise HarnessError(f"advance must be 'converged', 'window' or a number of tokens, not {self.advance!r}")
        if stride and (self.window is None or int(self.advance) < 1 or self.window % int(self.advance)):
            raise HarnessError(f"advance {self.advance} must be a divisor of the window, {self.window}")

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Move a window over the layer."""
        max_calls = None if self.advance == "window" else self.max_iterations
        return self.solve_schedule(layer, inputs, condition, self.schedule(layer), max_calls=max_calls)

    def most_token_evaluations(self, num_tokens: int) -> int:
        """L(L + 1)/2, unless nothing is frozen inside a window."""
        return num_tokens**2 if self.advance == "window" else num_tokens * (num_tokens + 1) // 2

    def schedule(self, layer: CausalLayer) -> Schedule:
        """The windows that a layer is decoded by."""
        window = self.window or layer.num_tokens
        if self.advance == "window":
            return Blocks(window, self.tau, self.max_iterations, mode="frontier")
        if self.advance == "converged" or self.tau == 0:
            return Frontier(window, self.tau)
        return Slide(window, int(self.advance), self.tau)
