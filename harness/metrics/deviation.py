"""Deviation: how far samples are from the sequential ones of the same latents, in image units ([-1, 1])."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Deviation:
    """RMSE and maximum over samples that come batch by batch; samples that are not finite are counted and left out.

    Example:
        >>> import torch
        >>> deviation = Deviation()
        >>> deviation.add(torch.tensor([[0.0, 0.5], [0.0, float("nan")]]), torch.zeros(2, 2))
        >>> deviation.result()["deviation_max"], deviation.nonfinite
        (0.5, 1)
    """

    squares: float = 0.0
    count: int = 0
    largest: float = 0.0
    nonfinite: int = 0

    def add(self, samples: Tensor, exact: Tensor) -> None:
        """Take in (B, ...) samples and the exact ones."""
        finite = samples.flatten(1).isfinite().all(dim=1)
        self.nonfinite += int((~finite).sum())
        difference = (samples[finite] - exact[finite]).double()
        if difference.numel():
            self.squares += float(difference.square().sum())
            self.count += difference.numel()
            self.largest = max(self.largest, float(difference.abs().max()))

    def result(self) -> dict[str, float | int | None]:
        """deviation_rmse and deviation_max, None without a finite sample, and nonfinite_samples."""
        known = self.count > 0
        return {
            "deviation_rmse": math.sqrt(self.squares / self.count) if known else None,
            "deviation_max": self.largest if known else None,
            "nonfinite_samples": self.nonfinite,
        }
