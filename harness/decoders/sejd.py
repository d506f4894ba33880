"""Selective Jacobi decoding (SeJD): the strongly coupled first layer sequentially, the others by Jacobi iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from harness.decoders.decoder import LAYER_ERRORS, Count, Decoder, Missing, decoders
from harness.decoders.jacobi import JacobiDecoder
from harness.decoders.selection import find_selection, selection_of
from harness.decoders.windows import Windows
from harness.errors import HarnessError
from harness.flows.protocols import CausalFlow, CausalLayer

PAPER = (1,)


@decoders.register("sejd")
@dataclass(kw_only=True)
class SelectiveJacobi(JacobiDecoder):
    """Selective Jacobi decoding: layer 1 sequential, Jacobi in the rest (arXiv 2505.24791, Sec. 3.5).

    Args:
        sequential_layers: places in decoding order of the layers decoded sequentially; the paper's is layer 1 alone.
        select: ``"first"`` keeps those; ``"measured"`` as many, by their cost, of which what iteration leaves at this
            tau and batch size does most to the sample. That is measured once for a flow, on a few samples and iterated
            from zeros; ``harness probe layers`` shows it.
    """

    sequential_layers: tuple[Count, ...] = PAPER
    select: Literal["first", "measured"] = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select == "measured" and self.sequential_layers != PAPER:
            raise HarnessError("select='measured' finds the sequential layers itself; leave sequential_layers out")

    def windows(self, layer: CausalLayer) -> Windows | None:
        if self.select == "measured":
            raise HarnessError("which layers are sequential is known only once the decoder is bound to a flow")
        return None if layer.number in self.sequential_layers else super().windows(layer)

    @property
    def reads_fits(self) -> bool:
        return self.select == "measured" or super().reads_fits

    def missing(self, flow: CausalFlow, batch: int) -> list[Missing]:
        if self.select == "first":
            return super().missing(flow, batch)
        unknown: list[Missing] = [LAYER_ERRORS] if find_selection(flow) is None else []
        return [*replace(self, select="first").missing(flow, batch), *unknown]

    def fits_digest(self, flow: CausalFlow, batch: int) -> str | None:
        if self.select == "first":
            return super().fits_digest(flow, batch)
        chosen = self._chosen(flow, batch)
        return f"{chosen.fits_digest(flow, batch) or ''} layers {chosen.sequential_layers}".strip()

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        return super().bind(flow, batch) if self.select == "first" else self._chosen(flow, batch).bind(flow, batch)

    def _chosen(self, flow: CausalFlow, batch: int) -> SelectiveJacobi:
        together = 1 if self.scope == "sample" else batch
        choices = selection_of(flow).choices(self.tau, together, self.max_iterations)
        return replace(self, select="first", sequential_layers=tuple(one.layer for one in choices if one.kept))
