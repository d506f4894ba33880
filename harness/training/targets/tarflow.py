"""A TarFlow of images, by maximum likelihood (arXiv 2412.06329)."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from harness.datasets import Images
from harness.errors import HarnessError
from harness.flows.protocols import CausalLayer, encode_tokens
from harness.flows.tarflow import TarFlow, TarFlowConfig, negative_log_likelihood
from harness.metrics.likelihood import draw_noise
from harness.training.config import TarFlowTraining
from harness.training.data import DISTURB, Batch, Epochs, distort, seeded
from harness.training.inversion import inversion_error
from harness.training.likelihood import NOTE, Splits
from harness.training.targets.base import COLUMNS, ROWS, Decode, Samples, Target, draw_images

DROPPED = 0.5
"""Share of a batch, whose rows are in a random order, that is learned without the nearest predecessors."""
VAR_RATE = 0.1
"""Of the running mean of z**2, the learned prior of a volume-preserving flow, as in the published training."""
ROOM = 0.25
"""Share of a GPU's free memory that images may take there."""


class TarFlowTarget(Target):
    """Noisy images, mirrored, distorted and with a share of their labels dropped, as the configuration says."""

    config: TarFlowTraining
    measure, unit, note, fused = "held_out_bits_per_dim", "held-out bits/dim", NOTE, True

    def __init__(self, config: TarFlowTraining, splits: Splits) -> None:
        self.config, self.splits, self.train = config, splits, splits.train
        self.digest, self.tested = splits.train.digest, splits.tested
        self.epochs = Epochs(len(splits.train), config)
        _, channels, height, width = splits.train.pixels.shape
        if height != width:
            raise HarnessError(
                f"'{config.dataset}' holds images of {width}x{height}; TarFlow needs squares: give a size"
            )
        self.shape = TarFlowConfig(
            image_channels=channels,
            image_size=height,
            patch=config.patch,
            channels=config.channels,
            blocks=config.blocks,
            layers_per_block=config.layers[0] if len(set(config.depths)) == 1 else config.depths,
            num_classes=splits.num_classes if config.conditional else 0,
            volume_preserving=config.volume_preserving,
            turn_every=config.turn_every,
        )
        if config.drop_nearest >= self.shape.num_tokens:
            raise HarnessError(f"drop_nearest = {config.drop_nearest} leaves nothing of {self.shape.num_tokens} tokens")
        if self.shape.num_classes:
            splits.require_known_classes()
        classes = f"{self.shape.num_classes} classes" if self.shape.num_classes else "unconditional"
        layers = "/".join(map(str, config.layers))
        self.description = (
            f"A TarFlow ({config.patch}-{config.channels}-{config.blocks}-{layers}: patch, channels, blocks, "
            f"layers per block) of {channels} x {height} x {width} images, {classes}"
        )

    def network(self) -> TarFlow:
        return TarFlow(self.shape)

    def place(self, device: torch.device) -> None:
        pixels, labels = self.splits.train.pixels, self.splits.train.labels
        if device.type == "cuda" and pixels.nbytes > ROOM * torch.cuda.mem_get_info(device)[0]:
            return
        self.device = device
        self.train = Images(pixels.to(device), None if labels is None else labels.to(device))

    def batch(self, step: int) -> Batch:
        """Images (B, C, H, W) and labels (B,), -1 where a label is dropped or none is."""
        config, train, rows = self.config, self.train, self.epochs.rows(step).to(self.device)
        generator = seeded(config.seed, DISTURB, step, device=self.device)
        images = train.scaled(rows)
        if config.flip:
            mirrored = torch.rand(len(rows), generator=generator, device=self.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if config.jitter:
            images = distort(images, config.jitter, generator)
        images = images + draw_noise(images.shape, config, generator)
        labels = torch.full_like(rows, -1) if train.labels is None else train.labels[rows]
        kept = torch.rand(len(rows), generator=generator, device=self.device) >= config.label_drop
        return images, labels.where(kept, -1)

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

    def flow(self, network: Any) -> TarFlow:
        return network

    def metadata(self, facts: dict[str, Any]) -> dict[str, str]:
        config, skipped = self.config, self.splits.skipped
        return {
            "dataset": config.dataset,
            "dataset_digest": self.digest,
            "sigma": str(config.sigma),
            "noise": config.noise,
            "seed": str(config.seed),
            "command": facts["command"],
            "config": json.dumps(facts["config"]),
            **({"turn_every": str(config.turn_every)} if config.turn_every > 1 else {}),
        } | ({"skipped_images": str(skipped)} if skipped else {})

    def card_rows(self, network: Any, score: float, decode: Decode) -> list[tuple[str, str]]:
        return self.splits.card_rows(network, self.config.dataset, score)

    def samples(self, network: Any, decode: Decode) -> Samples:
        """A class to a row; to its right the same after one denoising step, if that is defined."""
        config, labels = self.config, None
        rows, caption = min(network.num_classes, 10) or ROWS, "unconditional"
        if network.num_classes:
            labels = torch.arange(rows).repeat_interleave(COLUMNS).to(network.var.device)
            caption = "a class to a row"
        images = draw_images(network, decode, config.seed, labels)
        if config.noise != "gaussian":
            return Samples(images, COLUMNS, caption)
        denoised = network.denoise(images, config.sigma, labels)
        pairs = torch.stack([batch.unflatten(0, (rows, COLUMNS)) for batch in (images, denoised)], dim=1)
        caption += "; right half: the same after one denoising step"
        return Samples(pairs.flatten(0, 2), 2 * COLUMNS, caption)
