"""Jacobi iteration of a whole layer, and the decoder that uses it in every layer (UJD).

``x[l] <- z_in[l] * exp(log_scale(x[<l])) + shift(x[<l])`` for all tokens at once. The map is strictly causal, so
after t iterations the first t + 1 tokens are exact and L - 1 iterations suffice whatever the start (arXiv 2505.24791,
Prop. 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.decoders.base import Decoder, LayerTrace, decoders
from harness.decoders.initial import INITIAL
from harness.decoders.stopping import NORMS, SCOPES
from harness.decoders.windows import Blocks, Schedule, solve_windows
from harness.errors import HarnessError, unknown
from harness.flows.base import CausalLayer, Condition


@dataclass(kw_only=True)
class JacobiDecoder(Decoder):
    """Options shared by decoders that iterate.

    Args:
        initial: the first iterate: ``"zeros"``, ``"normal"`` or ``"input"``, the layer's own input.
        norm: of the update, by a name in `stopping.NORMS`; ``"inf"`` is the papers'.
        scope: ``"batch"`` stops when every sample has converged; with ``"sample"`` each sample stops by itself, so that
            no sample changes another's result.
        max_iterations: cap on the iterations of a layer; None for L - 1, at which every sample is exact.
    """

    initial: str = "zeros"
    norm: str = "inf"
    scope: str = "batch"
    max_iterations: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_iteration(self.initial, self.norm, self.scope, self.max_iterations)

    def solve_jacobi(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Iterate over all tokens at once until the norm of the update falls below tau, or is 0, or at the cap."""
        schedule = Blocks(layer.num_tokens, self.tau, self.max_iterations)
        return self.solve_schedule(layer, inputs, condition, schedule)

    def solve_schedule(
        self, layer: CausalLayer, inputs: Tensor, condition: Condition, schedule: Schedule
    ) -> tuple[Tensor, LayerTrace]:
        """Solve a layer by the windows of a schedule, with this decoder's start and stopping rule."""
        tokens = INITIAL[self.initial](layer, inputs)
        return solve_windows(layer, inputs, condition, tokens, schedule, norm=self.norm, scope=self.scope)


def check_iteration(initial: str, norm: str, scope: str, max_iterations: int | None) -> None:
    """Check what a Jacobi iteration is told.

    Raises:
        HarnessError: an unknown name, or a cap that is no number from 1.
    """
    for kind, name, known in (("initial guess", initial, INITIAL), ("norm", norm, NORMS), ("scope", scope, SCOPES)):
        if name not in known:
            raise unknown(kind, str(name), known)
    if max_iterations is not None and (not isinstance(max_iterations, int) or max_iterations < 1):
        raise HarnessError(f"max_iterations must be a number from 1, not {max_iterations!r}")


@decoders.register("ujd")
@dataclass(kw_only=True)
class UniformJacobi(JacobiDecoder):
    """Uniform Jacobi decoding: Jacobi iteration in every layer (SeJD, arXiv 2505.24791, Sec. 3.4)."""

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Iterate."""
        return self.solve_jacobi(layer, inputs, condition)
