"""A TarFlow of images, by maximum likelihood (arXiv 2412.06329)."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from harness.errors import HarnessError
from harness.flows.tarflow import TarFlow, TarFlowConfig, negative_log_likelihood
from harness.training.config import TarFlowTraining
from harness.training.data import draw_noise
from harness.training.likelihood import NOTE, Splits
from harness.training.targets.base import COLUMNS, Decode, ImageTarget, Samples

VAR_RATE = 0.1
"""Of the running mean of z**2, the learned prior of a volume-preserving flow, as in the published training."""


class TarFlowTarget(ImageTarget):
    """Noisy images."""

    config: TarFlowTraining
    note = NOTE

    def __init__(self, config: TarFlowTraining, splits: Splits) -> None:
        _, channels, height, width = splits.train.pixels.shape
        if height != width:
            raise HarnessError(
                f"'{config.dataset}' holds images of {width}x{height}; TarFlow needs squares: give a size"
            )
        super().__init__(config, splits)
        self.shape = TarFlowConfig(
            image_channels=channels,
            image_size=height,
            patch=config.patch,
            channels=config.channels,
            blocks=config.blocks,
            layers_per_block=config.layers,
            num_classes=self.num_classes,
            volume_preserving=config.volume_preserving,
        )
        self.description = (
            f"A TarFlow ({config.patch}-{config.channels}-{config.blocks}-{config.layers}: patch, channels, blocks, "
            f"layers per block) of {channels} x {height} x {width} images, {self.classes}"
        )

    def network(self) -> TarFlow:
        return TarFlow(self.shape)

    def noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images + draw_noise(images.shape, self.config, generator)

    def loss(self, network: Any, *batch: Tensor) -> Tensor:
        images, labels = batch
        latents, logdet = network.encode(images, labels if network.num_classes else None)
        if self.config.volume_preserving:
            squares = latents.detach().square().mean(dim=0)
            network.var.lerp_(reduce(squares, "mean").to(network.var), VAR_RATE)
        return negative_log_likelihood(latents, logdet)

    def evaluate(self, network: Any) -> float:
        return self.splits.held_out_bits_per_dim(network)

    def metadata(self, facts: dict[str, Any]) -> dict[str, str]:
        return super().metadata(facts) | {"sigma": str(self.config.sigma), "noise": self.config.noise}

    def card_rows(self, network: Any, score: float, decode: Decode) -> list[tuple[str, str]]:
        return self.splits.card_rows(network, self.config.dataset, score)

    def samples(self, network: Any, decode: Decode) -> Samples:
        """A class to a row; to its right the same after one denoising step, if that is defined."""
        drawn = super().samples(network, decode)
        if self.config.noise != "gaussian":
            return drawn
        denoised = network.denoise(drawn.images, self.config.sigma, drawn.labels)
        pairs = torch.stack([batch.unflatten(0, (-1, COLUMNS)) for batch in (drawn.images, denoised)], dim=1)
        caption = f"{drawn.caption}; right half: the same after one denoising step"
        return Samples(pairs.flatten(0, 2), 2 * COLUMNS, caption)
