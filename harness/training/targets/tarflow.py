"""A TarFlow of images, by maximum likelihood (arXiv 2412.06329)."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from harness.errors import HarnessError
from harness.flows.calls import encode_tokens
from harness.flows.protocols import CausalLayer
from harness.flows.tarflow import TarFlow, TarFlowConfig, negative_log_likelihood
from harness.metrics.likelihood import draw_noise
from harness.training.config import TarFlowTraining
from harness.training.inversion import inversion_error
from harness.training.likelihood import NOTE, Splits
from harness.training.targets.base import COLUMNS, Decode, ImageTarget, Samples

DROPPED = 0.5
"""Share of a batch, whose rows are in a random order, that is learned without the nearest predecessors."""
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
            layers_per_block=config.layers[0] if len(set(config.depths)) == 1 else config.depths,
            num_classes=self.num_classes,
            volume_preserving=config.volume_preserving,
            turn_every=config.turn_every,
        )
        if config.drop_nearest >= self.shape.num_tokens:
            raise HarnessError(f"drop_nearest = {config.drop_nearest} leaves nothing of {self.shape.num_tokens} tokens")
        layers = "/".join(map(str, config.layers))
        self.description = (
            f"A TarFlow ({config.patch}-{config.channels}-{config.blocks}-{layers}: patch, channels, blocks, "
            f"layers per block) of {channels} x {height} x {width} images, {self.classes}"
        )

    def network(self) -> TarFlow:
        return TarFlow(self.shape)

    def noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images + draw_noise(images.shape, self.config, generator)

    def loss(self, network: Any, *batch: Tensor) -> Tensor:
        images, labels = batch
        dropped = math.ceil(len(images) * DROPPED) if self.config.drop_nearest else 0
        parts = [(slice(dropped), self.config.drop_nearest), (slice(dropped, None), 0)]
        found = [self._encode(network, images[rows], labels[rows], o) for rows, o in parts if len(images[rows])]
        latents, logdet, errors = (torch.cat(part) for part in zip(*found, strict=True))
        if self.config.volume_preserving:
            squares = latents.detach().square().mean(dim=0)
            network.var.lerp_(reduce(squares, "mean").to(network.var), VAR_RATE)
        loss = negative_log_likelihood(latents, logdet)
        return loss + self.config.decode_weight * errors.mean() if len(errors) else loss

    def _encode(self, network: Any, images: Tensor, labels: Tensor, o: int) -> tuple[Tensor, Tensor, Tensor]:
        """`TarFlow.encode` without the o nearest predecessors, and the `inversion_error` of every layer, if asked."""
        condition = network.condition(len(images), labels if network.num_classes else None)
        condition, errors = network.mask_attention(condition, range(o)), []

        def see(layer: CausalLayer, inputs: Tensor, exact: Tensor) -> None:
            if self.config.decode_weight and not o:
                errors.append(inversion_error(layer, inputs, exact, condition, self.config.decode_iterations))

        latents, logdet = encode_tokens(network.layers, network.to_tokens(images), condition, see)
        return latents, logdet, torch.stack(errors) if errors else images.new_zeros(0)

    def evaluate(self, network: Any) -> float:
        return self.splits.held_out_bits_per_dim(network)

    def metadata(self, facts: dict[str, Any]) -> dict[str, str]:
        known = {"sigma": str(self.config.sigma), "noise": self.config.noise}
        turns = {"turn_every": str(self.config.turn_every)} if self.config.turn_every > 1 else {}
        return super().metadata(facts) | known | turns

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
