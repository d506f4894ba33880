"""How far samples are from the exact ones of the same latents."""

from __future__ import annotations

import math

from torch import Tensor

from harness.errors import HarnessError


class Deviation:
    """RMSE and largest difference of images that come batch by batch, in image units ([-1, 1] is 2 wide).

    A pair with a number that is not finite on either side has no difference: it is left out and counted.

    Example:
        >>> import torch
        >>> deviation = Deviation()
        >>> deviation.add(torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]]))
        >>> deviation.rmse, deviation.max
        (0.5, 1.0)
    """

    def __init__(self) -> None:
        self.nonfinite_samples = 0
        self._squares, self._numbers, self._max = 0.0, 0, 0.0

    def add(self, samples: Tensor, exact: Tensor) -> None:
        """Take in (B, ...) samples and the exact ones of the same latents.

        Raises:
            HarnessError: the two batches have different shapes.
        """
        if samples.shape != exact.shape:
            raise HarnessError(f"cannot compare samples of shape {tuple(samples.shape)} with {tuple(exact.shape)}")
        difference = samples.double() - exact.double()
        finite = difference.isfinite().flatten(1).all(dim=1)
        self.nonfinite_samples += int((~finite).sum())
        if finite.any():
            difference = difference[finite]
            self._squares += difference.square().sum().item()
            self._numbers += difference.numel()
            self._max = max(self._max, difference.abs().max().item())

    @property
    def rmse(self) -> float | None:
        """Root of the mean squared difference over all samples and pixels; None when nothing was finite."""
        return math.sqrt(self._squares / self._numbers) if self._numbers else None

    @property
    def max(self) -> float | None:
        """Largest difference of a single number; None when nothing was finite."""
        return self._max if self._numbers else None
