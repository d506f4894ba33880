"""Noise on images whose pixels are discrete, and the bits per dimension that a flow of the noisy images gives them.

A flow is a density p(v) of noisy images v = x + noise, not a probability of the images x, whose pixels take one of a
few levels. Drawing v and then reading each pixel of x off its own pixel of v, with the probability
``P(x | v) = q(v | x) / sum over levels k of q(v | k)``, q being the noise, is a model of the images themselves, and

``-log2 P(x) <= E_q(v|x) [ -log2 p(v) + sum over dimensions of log2 (sum over levels k of q(v | k)) ]``

for any noise (variational dequantisation, arXiv 1902.00275, Eq. 8, its q fixed). With uniform noise as wide as the
spacing of the levels the second term is minus the log of that spacing, which is the usual correction; with Gaussian
noise wider than the spacing it is nearly the same.

Whatever the flow, the bound is at least the entropy of the noise plus that second term, `Splits.noise_bits_per_dim`,
which grows with the width of the noise: figures of flows trained with different noise are no ranking of them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from harness.datasets import Images, load_dataset, to_unit
from harness.datasets.base import SPLITS
from harness.errors import HarnessError
from harness.flows.protocols import CausalFlow
from harness.training.config import TrainingConfig
from harness.training.data import draw_noise

logger = logging.getLogger(__name__)

DRAWS = 4
"""Of noise, that bits per dimension are averaged over: of one alone the third decimal is noise."""

NOTE = (
    "Bits per dimension are an upper bound on the code length of the discrete pixels, with the noise above as "
    "dequantisation (`harness/training/likelihood.py` derives it); they are those of the averaged weights as stored, "
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
        levels = to_unit(torch.cat([train.pixels.unique(), test.pixels.unique()]).unique())
        return cls(train, _first(test, config.held_out), levels, config, train.skipped + test.skipped, test.digest)

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

    def card_rows(self, flow: CausalFlow, dataset: str, held_out: float) -> list[tuple[str, str]]:
        """What a model card states of the images and of the bits per dimension, `held_out` of them known already."""
        train, noise = self.train, self.config.noise
        # Undistorted, so that the gap between training and held-out bits is overfitting.
        learned = bits_per_dim(flow, _first(train, len(self.held_out)), self.levels, self.config)
        return [
            ("training images", f"{dataset}, {len(train):,}, SHA-256 {train.digest[:16]}"),
            *([("corrupt images left out", f"{self.skipped:,}")] if self.skipped else []),
            ("held-out bits/dim", f"{held_out:.4f} on {len(self.held_out):,} images of the test split, {DRAWS} draws"),
            ("of these, the noise's own", f"{self.noise_bits_per_dim():.4f}, the least that any flow can reach"),
            ("training bits/dim", f"{learned:.4f} on as many training images"),
            ("noise", f"{noise}, sigma {self.config.sigma} in image units ([-1, 1])"),
        ]


def _first(images: Images, count: int | None) -> Images:
    rows = slice(count)
    return Images(images.pixels[rows], None if images.labels is None else images.labels[rows])


def log_noise_mass(noisy: Tensor, levels: Tensor, config: TrainingConfig) -> Tensor:
    """``log sum over levels k of q(v | k)``, the mean over the dimensions of each image: (B, C, H, W) -> (B,)."""
    total = torch.zeros_like(noisy, dtype=torch.float64)
    for level in levels:  # one at a time: 256 copies of a batch would not fit
        distance = (noisy - level).double() / config.sigma
        if config.noise == "gaussian":
            total += torch.exp(-0.5 * distance.square()) / (config.sigma * math.sqrt(2 * math.pi))
        else:
            total += (distance.abs() <= 1 + 1e-5) / (2 * config.sigma)  # noise on the very edge, rounded outwards
    return total.log().mean(dim=(1, 2, 3))


def log_density(flow: CausalFlow, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Log density per dimension of data under a flow, in nats: (B, ...) -> (B,), in float64 on the CPU."""
    latents, logdet = flow.encode(images, labels)
    origin = flow.scale_latents(torch.zeros_like(latents[:1]))
    scale = flow.scale_latents(torch.ones_like(latents[:1])) - origin
    latents, logdet, origin, scale = (x.cpu().double() for x in (latents, logdet, origin, scale))
    squares = ((latents - origin) / scale).square() + 2 * scale.log() + math.log(2 * math.pi)
    return logdet - 0.5 * squares.mean(dim=(1, 2))


@torch.no_grad()
def bits_per_dim(
    flow: CausalFlow, images: Images, levels: Tensor, config: TrainingConfig, batch_size: int = 100
) -> float:
    """The bound above, in bits per dimension, averaged over images and `DRAWS` draws of noise by the config's seed.

    Labels are used when the flow has classes; `batch_size` changes the memory taken, not the noise.
    """
    generator = torch.Generator().manual_seed(config.seed)
    total = 0.0
    for start in [*range(0, len(images), batch_size)] * DRAWS:
        clean = images.scaled(slice(start, start + batch_size))
        noisy = (clean + draw_noise(clean.shape, config, generator)).to(flow.device)
        labels = images.labels[start : start + batch_size] if flow.num_classes and images.labels is not None else None
        nats = log_noise_mass(noisy, levels, config).cpu() - log_density(flow, noisy, labels)
        total += float(nats.sum())
    return total / len(images) / DRAWS / math.log(2)
