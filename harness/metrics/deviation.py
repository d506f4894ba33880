"""Deviation: how far samples are from the sequential ones of the same latents, in image units ([-1, 1])."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from harness.errors import HarnessError
from harness.metrics.fid import GROUPS


@dataclass
class Deviation:
    """RMSE and maximum over samples that come batch by batch.

    A sample that is not finite, or whose exact counterpart is not, has no difference: it is left out and counted.

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
    each: list[float] = field(default_factory=list)  # mean squared difference of every finite sample, in order

    def add(self, samples: Tensor, exact: Tensor) -> None:
        """Take in (B, ...) samples and the exact ones, of the same shape."""
        if samples.shape != exact.shape:
            raise HarnessError(f"cannot compare samples of shape {tuple(samples.shape)} with {tuple(exact.shape)}")
        difference = samples.double() - exact.double()
        finite = difference.flatten(1).isfinite().all(dim=1)
        self.nonfinite += int((~finite).sum())
        difference = difference[finite]
        if difference.numel():
            self.squares += float(difference.square().sum())
            self.each += difference.flatten(1).square().mean(dim=1).tolist()
            self.count += difference.numel()
            self.largest = max(self.largest, float(difference.abs().max()))

    def merge(self, other: Deviation) -> None:
        """Take in the samples that another one has seen."""
        self.squares += other.squares
        self.count += other.count
        self.largest = max(self.largest, other.largest)
        self.nonfinite += other.nonfinite
        self.each += other.each

    @property
    def mse(self) -> float | None:
        """Mean squared difference over all finite samples; None without one."""
        return self.squares / self.count if self.count else None

    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """95 % interval of the RMSE over latents, None for fewer than two samples.

        Student's, of the logarithm: from the means of up to `GROUPS` groups of consecutive samples, since those of a
        batch stop together.
        """
        from scipy.stats import t as student

        groups = min(GROUPS, len(self.each))
        if self.mse is None or groups < 2:
            return None, None
        means = np.array([part.mean() for part in np.array_split(np.array(self.each), groups)])
        error = means.std(ddof=1) / math.sqrt(groups) / (2 * self.mse) if self.mse else 0.0
        reach, rmse = math.exp(student.ppf(0.975, groups - 1) * error), math.sqrt(self.mse)
        return rmse / reach, rmse * reach

    def result(self) -> dict[str, float | int | None]:
        """deviation_rmse, its interval and deviation_max, None without a finite sample, and nonfinite_samples."""
        low, high = self.interval()
        return {
            "deviation_rmse": None if self.mse is None else math.sqrt(self.mse),
            "deviation_low": low,
            "deviation_high": high,
            "deviation_max": self.largest if self.count else None,
            "nonfinite_samples": self.nonfinite,
        }
