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
    """What was learned for a token's own number of updates, beside the linear one; a linear one alone after those.

    Args:
        lasting: whether the last one holds for all iterations after its own: where they go on from a good iterate.
    """

    maps: list[GatedMap]
    beside: Correction
    lasting: bool = False

    def asks(self, visits: list[Visit]) -> bool:
        """Where any token was updated less often than something was learned for."""
        return self.lasting or any(updates < len(self.maps) for _, _, updates in visits)

    def __call__(
        self, change: Tensor, known: Explained | None, labels: Tensor | None, start: int, visits: list[Visit]
    ) -> Tensor:
        """Each map sees all of the window that is before its own tokens' end, whatever these were updated."""
        error, last = self.beside(change, known, labels, start, visits), len(self.maps) - 1
        if known is not None:
            for first, end, updates in visits:
                if self.lasting or updates <= last:
                    seen = (of[:, :end] for of in (change, known.scaled, known.hidden))
                    error[:, first:end] += self.maps[min(updates, last)](*seen)[:, first:]
        return error
