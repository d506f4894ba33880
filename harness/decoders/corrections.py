"""What is added to an update: the fitted maps, each for tokens that have been updated so often."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, cat

from harness.decoders.learned import GatedMap
from harness.decoders.maps import CausalMap
from harness.decoders.solver import Correction
from harness.decoders.windows import Visit
from harness.flows.protocols import Explained


@dataclass(frozen=True)
class LinearCorrection(Correction):
    """Every token by the map of its own number of updates, the last one for all after it."""

    maps: list[CausalMap]

    def asks(self, visits: list[Visit]) -> bool:
        return False

    def __call__(
        self, change: Tensor, known: Explained | None, labels: Tensor | None, start: int, visits: list[Visit]
    ) -> Tensor:
        features, last = self.maps[0].features(change), len(self.maps) - 1
        parts = [self.maps[min(n, last)].span(features, labels, start, first, end) for first, end, n in visits]
        return cat(parts, dim=1) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class GatedCorrection(Correction):
    """What was learned for a window's iteration, beside the linear one; `linear` where tokens are of several.

    Args:
        lasting: whether the last one holds for all iterations after its own: where they go on from a good iterate.
    """

    maps: list[GatedMap]
    beside: Correction
    linear: Correction
    lasting: bool = False

    def asks(self, visits: list[Visit]) -> bool:
        """Only where all tokens of a window were updated equally often, as those were that it was fitted on."""
        return len(visits) == 1 and (self.lasting or visits[0][2] < len(self.maps))

    def __call__(
        self, change: Tensor, known: Explained | None, labels: Tensor | None, start: int, visits: list[Visit]
    ) -> Tensor:
        if len(visits) > 1:
            return self.linear(change, known, labels, start, visits)
        error = self.beside(change, known, labels, start, visits)
        gated = self.maps[min(visits[0][2], len(self.maps) - 1)]
        return error if known is None else error + gated(change, known.scaled, known.hidden)
