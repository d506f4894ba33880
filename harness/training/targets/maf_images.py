"""A masked autoregressive flow of dequantised images, by maximum likelihood (arXiv 1705.07057)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.training.config import MafTraining
from harness.training.data import DISTURB, Batch, draw_noise, seeded
from harness.training.likelihood import NOTE, Splits
from harness.training.targets.base import COLUMNS, Decode, Samples, draw_images
from harness.training.targets.maf import MafTarget


class MafImages(MafTarget):
    """Images whose pixels are features.

    Args:
        config: names the noise and the seed.
        splits: the images.
    """

    measure, unit, note = "held_out_bits_per_dim", "held-out bits/dim", NOTE

    def __init__(self, config: MafTraining, splits: Splits) -> None:
        channels, height, width = splits.train.pixels.shape[1:]
        self.splits, self.image_shape, self.digest = splits, (channels, height, width), splits.train.digest
        super().__init__(
            config, channels * height * width, f"{channels} x {height} x {width} images of {config.dataset}"
        )

    def batch(self, step: int) -> Batch:
        """Noisy images (B, C, H, W), drawn with replacement."""
        generator, train = seeded(self.config.seed, DISTURB, step), self.splits.train
        images = train.scaled(torch.randint(len(train), (self.config.batch_size,), generator=generator))
        return (images + draw_noise(images.shape, self.config, generator),)

    def evaluate(self, network: nn.Module) -> float:
        return self.splits.held_out_bits_per_dim(self.flow(network))

    def facts(self) -> dict[str, Any]:
        config = self.config
        return {
            "image_shape": self.image_shape,
            "dataset": config.dataset,
            "dataset_digest": self.digest,
            "noise": config.noise,
            "sigma": config.sigma,
        }

    def card_rows(self, network: nn.Module, score: float, decode: Decode) -> list[tuple[str, str]]:
        """Bits per dimension, beside those of pixels that ignore each other."""
        independent = f"{self.independent_bits_per_dim():.4f}, exact where a flow's are a bound"
        return [
            *self.splits.card_rows(self.flow(network), str(self.config.dataset), score),
            ("bits/dim of independent pixels", independent),
        ]

    def samples(self, network: nn.Module, decode: Decode) -> Samples:
        return Samples(draw_images(self.flow(network), decode, self.config.seed), COLUMNS, "unconditional")

    def independent_bits_per_dim(self) -> float:
        """Code length of the held-out pixels when each has the training images' own frequencies, one count added."""
        levels = self.splits.train.pixels.unique()
        train = torch.stack([(self.splits.train.pixels == level).sum(0) + 1 for level in levels]).double()
        frequency = train / train.sum(dim=0)
        held_out = torch.stack([self.splits.held_out.pixels == level for level in levels]).double()
        return -float((held_out * frequency.log2()[:, None]).sum(dim=0).mean())
