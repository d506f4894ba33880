"""Selective Jacobi decoding (SeJD): the strongly coupled first layer sequentially, the others by Jacobi iteration."""

from __future__ import annotations

from dataclasses import dataclass

from harness.decoders.decoder import Count, decoders
from harness.decoders.jacobi import JacobiDecoder
from harness.decoders.windows import Windows
from harness.flows.protocols import CausalLayer


@decoders.register("sejd")
@dataclass(kw_only=True)
class SelectiveJacobi(JacobiDecoder):
    """Selective Jacobi decoding: layer 1 sequential, Jacobi in the rest (arXiv 2505.24791, Sec. 3.5).

    Args:
        sequential_layers: places in decoding order of the layers decoded sequentially; the paper's is layer 1 alone.
    """

    sequential_layers: tuple[Count, ...] = (1,)

    def windows(self, layer: CausalLayer) -> Windows | None:
        return None if layer.number in self.sequential_layers else super().windows(layer)
