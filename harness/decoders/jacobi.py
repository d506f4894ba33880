"""Jacobi iteration of one layer, and the decoder that uses it in every layer (UJD).

``x[l] <- z_in[l] * exp(log_scale(x[<l])) + shift(x[<l])`` for all tokens at once. The map is strictly causal, so
after t iterations the first t + 1 tokens are exact and L - 1 iterations suffice whatever the start (arXiv 2505.24791,
Prop. 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.decoders.base import Decoder, LayerTrace, decoders
from harness.decoders.initial import INITIAL
from harness.decoders.stopping import NORMS, SCOPES
from harness.errors import HarnessError, unknown
from harness.flows.base import CausalLayer, Condition


@dataclass(kw_only=True)
class JacobiDecoder(Decoder):
    """Options shared by decoders that iterate over the whole sequence.

    Args:
        initial: the first iterate: ``"zeros"``, ``"normal"`` or ``"input"``, the layer's own input.
        norm: of the update, by a name in `stopping.NORMS`; ``"inf"`` is the papers'.
        scope: ``"batch"`` stops when every sample has converged; ``"sample"`` lets a converged sample leave the
            batch, so that no sample changes another's result.
        max_iterations: cap on the iterations of a layer; None for L - 1, at which every sample is exact.
    """

    initial: str = "zeros"
    norm: str = "inf"
    scope: str = "batch"
    max_iterations: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, name, known in (
            ("initial guess", self.initial, INITIAL),
            ("norm", self.norm, NORMS),
            ("scope", self.scope, SCOPES),
        ):
            if name not in known:
                raise unknown(kind, str(name), known)
        if self.max_iterations is not None and self.max_iterations < 1:
            raise HarnessError(f"max_iterations must be at least 1, not {self.max_iterations}")

    def solve_jacobi(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Iterate until the norm of the update falls below tau, or is 0, or the cap is reached.

        Args:
            layer: the layer to invert.
            inputs: (B, L, D) z_in in the layer's order.
            condition: passed on to the layer.

        Returns:
            (B, L, D) outputs and their trace. A residual that grows is only flagged; a non-finite one ends the layer.
        """
        tokens = INITIAL[self.initial](layer, inputs)
        tokens[:, 0] = inputs[:, 0]
        exact_after = layer.num_tokens - 1
        limit = min(self.max_iterations or exact_after, exact_after)
        active: Tensor | None = None  # rows still iterating; None for all of them
        residuals: list[float] = []
        evaluations, converged = 0.0, exact_after == 0
        while not converged and len(residuals) < limit:
            current, z, scope = (
                (tokens, inputs, condition)
                if active is None
                else (
                    tokens[active],
                    inputs[active],
                    condition.select(active),
                )
            )
            log_scale, shift = layer.affine(current[:, :-1], None, 0, scope)
            update = torch.addcmul(shift, z[:, 1:], log_scale.exp())
            norms = NORMS[self.norm](update - current[:, 1:], update)
            if active is None:
                tokens[:, 1:] = update
            else:
                tokens[active, 1:] = update
            evaluations += exact_after * condition.passes * len(current) / len(inputs)
            residuals.append(float(norms.max()))
            if not math.isfinite(residuals[-1]):
                break
            done = (norms < self.tau) | (norms == 0)
            converged = residuals[-1] < self.tau or residuals[-1] == 0 or len(residuals) == exact_after
            if self.scope == "sample" and not converged and bool(done.any()):
                rows = torch.arange(len(tokens), device=tokens.device) if active is None else active
                active = rows[~done]
        return tokens, LayerTrace(
            layer=layer.number,
            block=layer.block,
            mode="jacobi",
            iterations=len(residuals),
            converged=converged,
            residuals=residuals,
            token_evaluations=evaluations,
            depth=len(residuals),
            flags=_flags(residuals, converged),
        )


def _flags(residuals: list[float], converged: bool) -> tuple[str, ...]:
    finite = all(map(math.isfinite, residuals))
    growing = any(later > earlier for earlier, later in zip(residuals, residuals[1:], strict=False))
    noticed = {"non-finite": not finite, "cap": finite and not converged, "growing": growing}
    return tuple(flag for flag, seen in noticed.items() if seen)


@decoders.register("ujd")
@dataclass(kw_only=True)
class UniformJacobi(JacobiDecoder):
    """Uniform Jacobi decoding: Jacobi iteration in every layer (SeJD, arXiv 2505.24791, Sec. 3.4)."""

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Iterate."""
        return self.solve_jacobi(layer, inputs, condition)
