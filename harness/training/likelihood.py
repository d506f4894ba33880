"""The images of a training, and the bits per dimension of those that are held out, see `harness.metrics.likelihood`."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from harness.datasets import Images, load_dataset
from harness.datasets.base import SPLITS
from harness.errors import HarnessError
from harness.flows.protocols import CausalFlow
from harness.metrics.likelihood import DRAWS, bits_per_dim, draw_noise, levels_of, log_noise_mass
from harness.training.config import TrainingConfig

logger = logging.getLogger(__name__)

NOTE = (
    "Bits per dimension are an upper bound on the code length of the discrete pixels, with the noise above as "
    "dequantisation (`harness/metrics/likelihood.py` derives it); they are those of the averaged weights as stored, "
    "given the labels where there are classes, and no ranking against flows of other noise."
)


@dataclass(frozen=True)
class Splits:
    """The images of a training; `config` names the noise and the seed."""

    train: Images
    held_out: Images
    """Of the test split, or the first of it: what bits per dimension are measured on."""
    levels: Tensor
    """(levels,) the values in [-1, 1] that pixels take: 17 in the digits, 256 in photographs."""
    config: TrainingConfig
    skipped: int = 0
    """Corrupt images that were left out."""
    tested: str = ""
    """SHA-256 of the whole test split."""

    @classmethod
    def load(
        cls, config: TrainingConfig, dataset: str, size: int | None, root: Path | None, skip_corrupt: bool
    ) -> Splits:
        """The splits of a dataset by name; a `HarnessError` where they cannot be read."""
        train, test = (load_dataset(dataset, split, root, size, skip_corrupt) for split in SPLITS)
        test = test.of_shape(tuple(train.pixels.shape[1:]), f"the test split of '{dataset}'")
        splits = cls.of(train, test, config)
        if splits.skipped:
            logger.warning("%d corrupt images of '%s' are left out", splits.skipped, dataset)
        return splits

    @classmethod
    def of(cls, train: Images, test: Images, config: TrainingConfig) -> Splits:
        """The splits as `config` uses them."""
        held_out, skipped = test.first(config.held_out), train.skipped + test.skipped
        return cls(train, held_out, levels_of(train, test), config, skipped, test.digest)

    @property
    def num_classes(self) -> int:
        """Classes to be learned; 0 where there are fewer than two."""
        count = 0 if self.train.labels is None else int(self.train.labels.max()) + 1
        return count if count > 1 else 0

    def require_known_classes(self) -> None:
        """A `HarnessError` where the held-out images have a class that no training image has."""
        held_out, train = ({} if of.labels is None else set(of.labels.tolist()) for of in (self.held_out, self.train))
        if unknown := sorted(set(held_out) - set(train)):
            raise HarnessError(
                f"the test split has images of {'class' if len(unknown) == 1 else 'classes'} "
                f"{', '.join(map(str, unknown))} (counted from 0), which the train split has not, so nothing is "
                "learned of them; give it some, or train with conditional = false"
            )

    def held_out_bits_per_dim(self, flow: CausalFlow) -> float:
        return bits_per_dim(flow, self.held_out, self.levels, self.config)

    def noise_bits_per_dim(self) -> float:
        """What the noise alone costs on the held-out images: the least that any flow trained with it can reach."""
        sigma, generator = self.config.sigma, torch.Generator().manual_seed(self.config.seed)
        entropy = math.log(sigma * math.sqrt(2 * math.pi * math.e) if self.config.noise == "gaussian" else 2 * sigma)
        clean = self.held_out.scaled()
        noisy = (clean + draw_noise(clean.shape, self.config, generator) for _ in range(DRAWS))
        mass = fmean(float(log_noise_mass(one, self.levels, self.config).mean()) for one in noisy)
        return (entropy + mass) / math.log(2)

    def image_rows(self, dataset: str) -> list[tuple[str, str]]:
        """What a model card states of the images."""
        return [
            ("training images", f"{dataset}, {len(self.train):,}, SHA-256 {self.train.digest[:16]}"),
            *([("corrupt images left out", f"{self.skipped:,}")] if self.skipped else []),
        ]

    def card_rows(self, flow: CausalFlow, dataset: str, held_out: float) -> list[tuple[str, str]]:
        """What a model card states of the images and of the bits per dimension, `held_out` of them known already."""
        # Undistorted, so that the gap between training and held-out bits is overfitting.
        learned = bits_per_dim(flow, self.train.first(len(self.held_out)), self.levels, self.config)
        return [
            *self.image_rows(dataset),
            ("held-out bits/dim", f"{held_out:.4f} on {len(self.held_out):,} images of the test split, {DRAWS} draws"),
            ("of these, the noise's own", f"{self.noise_bits_per_dim():.4f}, the least that any flow can reach"),
            ("training bits/dim", f"{learned:.4f} on as many training images"),
            ("noise", f"{self.config.noise}, sigma {self.config.sigma} in image units ([-1, 1])"),
        ]
