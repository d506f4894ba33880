"""The batches of a training run: every random number of step t follows from the seed and t alone.

So a resumed run sees what the undisturbed one sees without storing the state of any generator, and a batch is the same
however many processes share it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from harness.datasets import Images
from harness.training.config import TrainingConfig
from harness.training.likelihood import draw_noise

ORDER, DISTURB, SAMPLES = 0, 1, 2
"""What random numbers are for, so that no two uses share any."""


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch of step t at index t: noisy images (b, C, H, W) and labels (b,), -1 where a label is dropped or none is.

    Args:
        images: the training split.
        config: batch size, noise, flips, distortions, label drop and seed.
        rank: this process among `world`; each gets its share of every batch.
        world: number of processes.
    """

    def __init__(self, images: Images, config: TrainingConfig, rank: int = 0, world: int = 1) -> None:
        self.images, self.config, self.share = images, config, slice(rank, None, world)
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        config, size = self.config, len(self.images)
        generator = seeded(config.seed, DISTURB, step)
        places = range(step * config.batch_size, (step + 1) * config.batch_size)
        rows = torch.stack([self._epoch(place // size)[place % size] for place in places])
        batch = self.images.scaled(rows)
        if config.flip:
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        if config.jitter:
            batch = distort(batch, config.jitter, generator)
        batch = batch + draw_noise(batch.shape, config, generator)
        labels = torch.full((len(rows),), -1) if self.images.labels is None else self.images.labels[rows]
        labels = labels.where(torch.rand(len(rows), generator=generator) >= config.label_drop, -1)
        return batch[self.share], labels[self.share]

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.images), generator=seeded(self.config.seed, ORDER, epoch))


def seeded(*key: int) -> torch.Generator:
    """A generator on the CPU whose numbers are unrelated to those of any other key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def distort(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Images under small random affine maps, as a hand or a scanner would vary them.

    At strength 1 the standard deviations are 0.1 radians of rotation, 0.1 of shear, 5 % of scale, and 6 % of half the
    side of shift. What comes in from outside is as dark as can be.

    Args:
        images: (B, C, H, W) in [-1, 1].
        strength: factor on all of them.
        generator: on the CPU.
    """
    n = len(images)
    angle, shear, scale, right, down = (torch.randn(5, n, generator=generator) * strength).unbind()
    angle, shear, scale, right, down = 0.1 * angle, 0.1 * shear, 1 + 0.05 * scale, 0.06 * right, 0.06 * down
    rows = [angle.cos() * scale, shear - angle.sin(), right, angle.sin(), angle.cos() * scale, down]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1
