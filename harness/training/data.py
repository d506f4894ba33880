"""The batches of a training run: every random number of step t follows from the seed and t alone.

So a resumed run sees what the undisturbed one sees without storing the state of any generator, and a batch is the same
however many processes share it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from harness.errors import HarnessError
from harness.training.config import TrainingConfig

ORDER, DISTURB, SAMPLES = 0, 1, 2
"""What random numbers are for, so that no two uses share any."""

Batch = tuple[Tensor, ...]


class Batches(Dataset[Batch]):
    """Batch of step t at index t, as far as it falls to process `rank` of `world`; `draw` gives it whole."""

    def __init__(self, draw: Callable[[int], Batch], rank: int = 0, world: int = 1) -> None:
        self.draw, self.share = draw, slice(rank, None, world)

    def __getitem__(self, step: int) -> Batch:
        return tuple(tensor[self.share] for tensor in self.draw(step))


class Epochs:
    """Which of `size` rows a step learns from: all of them, in an order of their own each time round.

    A batch of more rows than there are is a `HarnessError`.
    """

    def __init__(self, size: int, config: TrainingConfig) -> None:
        if config.batch_size > size:
            raise HarnessError(f"batch_size = {config.batch_size} is more than the {size} rows that are learned from")
        self.size, self.config = size, config
        self._order = lru_cache(maxsize=2)(
            lambda epoch: torch.randperm(size, generator=seeded(config.seed, ORDER, epoch))
        )

    def rows(self, step: int) -> Tensor:
        """(B,) indices of a step counted from 0."""
        places = range(step * self.config.batch_size, (step + 1) * self.config.batch_size)
        return torch.stack([self._order(place // self.size)[place % self.size] for place in places])


def seeded(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers are unrelated to those of any other key; those of another kind of device differ."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def distort(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) images in [-1, 1] under small random affine maps, as a hand or a scanner would vary them.

    At strength 1 the standard deviations are 0.1 radians of rotation, 0.1 of shear, 5 % of scale, and 6 % of half the
    side of shift. What comes in from outside is as dark as can be.
    """
    n = len(images)
    drawn = torch.randn(5, n, generator=generator, device=generator.device) * strength
    angle, shear, scale, right, down = drawn.unbind()
    angle, shear, scale, right, down = 0.1 * angle, 0.1 * shear, 1 + 0.05 * scale, 0.06 * right, 0.06 * down
    rows = [angle.cos() * scale, shear - angle.sin(), right, angle.sin(), angle.cos() * scale, down]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1
