"""Sequential decoding: one token at a time with cached keys and values; exact, and the baseline of everything."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.decoders.decoder import Decoder, LayerTrace, decoders
from harness.decoders.micro_batches import SEQUENTIAL, Footprint
from harness.flows.protocols import CausalLayer, Condition


@decoders.register("sequential")
@dataclass(kw_only=True)
class Sequential(Decoder):
    """Exact decoding, left to right, window 1, keys and values cached (TarFlow, arXiv 2412.06329, Eq. 8)."""

    takes_tau = False

    def footprint(self, layer: CausalLayer) -> Footprint:
        """One token a call, and no sample depends on another."""
        return SEQUENTIAL

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Invert one layer in L - 1 steps."""
        return solve_sequential(layer, inputs, condition)


def solve_sequential(layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
    """Invert one layer exactly: L - 1 calls of one token each.

    Args:
        layer: the layer to invert.
        inputs: (B, L, D) z_in in the layer's order.
        condition: passed on to the layer.

    Returns:
        (B, L, D) outputs and their trace; ``converged`` is False only when they overflowed.
    """
    tokens = inputs.clone()
    cache = layer.new_cache(len(inputs), condition)
    steps = layer.num_tokens - 1
    for position in range(steps):
        window = tokens[:, position : position + 1]
        tokens[:, position + 1 : position + 2] = layer.update(inputs, window, cache, position, condition)
    finite = bool(tokens.isfinite().all())
    return tokens, LayerTrace(
        layer=layer.number,
        block=layer.block,
        mode="sequential",
        iterations=steps,
        converged=finite,
        residuals=[],
        token_evaluations=steps * condition.passes,
        depth=steps,
        flags=() if finite else ("non-finite",),
    )
