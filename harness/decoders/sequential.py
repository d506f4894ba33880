"""Sequential decoding: one token at a time with cached keys and values; exact, and the baseline of everything."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.decoders.decoder import Decoder, LayerTrace, decoders
from harness.decoders.micro_batches import SEQUENTIAL, Footprint
from harness.decoders.solver import solve_sequential
from harness.flows.protocols import CausalLayer, Condition


@decoders.register("sequential")
@dataclass(kw_only=True)
class Sequential(Decoder):
    """Exact decoding, left to right, window 1, keys and values cached (TarFlow, arXiv 2412.06329, Eq. 8)."""

    takes_tau = False

    def footprint(self, layer: CausalLayer) -> Footprint:
        return SEQUENTIAL

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        return solve_sequential(layer, inputs, condition)
