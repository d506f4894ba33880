"""What the training loop and the release ask of a target."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.datasets import Images
from harness.flows.protocols import CausalFlow
from harness.training.config import ImageTraining, TrainingConfig
from harness.training.data import DISTURB, SAMPLES, Batch, Epochs, distort, seeded
from harness.training.likelihood import Splits

Decode = Callable[..., Any]
"""``Decoder.decode``: flow, latents (B, L, D), labels -> a result with `tokens` (B, L, D) and `images` (B, C, H, W)."""

COLUMNS, ROWS = 8, 8
"""Of a grid of samples."""
ROOM = 0.25
"""Share of a GPU's free memory that images may take there."""


@dataclass(frozen=True)
class Samples:
    """Samples to look at."""

    images: Tensor
    """(N, C, H, W) in [-1, 1]."""
    columns: int
    """Images per row of the grid."""
    caption: str
    labels: Tensor | None = None
    """(N,) their classes, where they were drawn by class."""


class Target(ABC):
    """A kind of network, what it is trained on, and how it is judged."""

    config: TrainingConfig
    measure: str
    """Column of the curve, and fact in a checkpoint's metadata: what `evaluate` returns."""
    unit: str
    """Of the measure, in words."""
    description: str
    """The kind of flow and what it was trained on, as a model card begins."""
    note = ""
    """A paragraph of the model card on the measure."""
    digest = ""
    """SHA-256 of the data that are learned from; empty where there are none."""
    tested = ""
    """SHA-256 of the data that are held out; empty where there are none."""
    fused = False
    """Which of torch's two AdamW trains the network: they differ in the last bits, and shipped flows had either."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A new network, its weights drawn from torch's global generator."""

    def place(self, device: torch.device) -> torch.device:
        """Where batches are made: on the device that trains, where that is possible and the data fit there."""
        return torch.device("cpu")

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """What step, from 0 on, is learned from, where `place` says: tensors whose first dimension is the batch."""

    @abstractmethod
    def loss(self, network: Any, *batch: Tensor) -> Tensor:
        """What a step minimises; a scalar in nats. Running statistics of the network are updated meanwhile."""

    @abstractmethod
    def evaluate(self, network: Any) -> float:
        """How good a network is, on data or draws that no step sees."""

    @abstractmethod
    def flow(self, network: Any) -> CausalFlow:
        """The network as it is decoded."""

    @abstractmethod
    def metadata(self, facts: dict[str, Any]) -> dict[str, str]:
        """Metadata of a checkpoint: `facts` of the training, which have the configuration, and the target's own."""

    @abstractmethod
    def card_rows(self, network: Any, score: float, decode: Decode) -> list[tuple[str, str]]:
        """Rows of the model card's table; `score` is what `evaluate` returned."""

    def samples(self, network: Any, decode: Decode) -> Samples | None:
        """Exact samples by the configuration's seed; None when the data are no images."""
        return None


class ImageTarget(Target):
    """Images, mirrored, distorted and with a share of their labels dropped, as the configuration says."""

    config: ImageTraining
    measure, unit, fused = "held_out_bits_per_dim", "held-out bits/dim", True

    def __init__(self, config: ImageTraining, splits: Splits) -> None:
        self.config, self.splits, self.train = config, splits, splits.train
        self.digest, self.tested = splits.train.digest, splits.tested
        self.epochs = Epochs(len(splits.train), config)
        self.num_classes = splits.num_classes if config.conditional else 0
        if self.num_classes:
            splits.require_known_classes()
        self.device = torch.device("cpu")
        self.classes = f"{self.num_classes} classes" if self.num_classes else "unconditional"

    def place(self, device: torch.device) -> torch.device:
        pixels, labels = self.splits.train.pixels, self.splits.train.labels
        if device.type != "cuda" or pixels.nbytes <= ROOM * torch.cuda.mem_get_info(device)[0]:
            self.device = device
            self.train = Images(pixels.to(device), None if labels is None else labels.to(device))
        return self.device

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
        images = self.noisy(images, generator)
        labels = torch.full_like(rows, -1) if train.labels is None else train.labels[rows]
        kept = torch.rand(len(rows), generator=generator, device=self.device) >= config.label_drop
        return images, labels.where(kept, -1)

    def noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What the network sees of (B, C, H, W) images."""
        return images

    def metadata(self, facts: dict[str, Any]) -> dict[str, str]:
        config, skipped = self.config, self.splits.skipped
        return {
            "dataset": config.dataset,
            "dataset_digest": self.digest,
            "seed": str(config.seed),
            "command": facts["command"],
            "config": json.dumps(facts["config"]),
        } | ({"skipped_images": str(skipped)} if skipped else {})

    def flow(self, network: Any) -> Any:
        return network

    def samples(self, network: Any, decode: Decode) -> Samples:
        """A class to a row."""
        if not network.num_classes:
            return Samples(draw_images(network, decode, self.config.seed), COLUMNS, "unconditional")
        labels = torch.arange(min(network.num_classes, 10)).repeat_interleave(COLUMNS).to(network.device)
        return Samples(draw_images(network, decode, self.config.seed, labels), COLUMNS, "a class to a row", labels)


def draw_images(flow: CausalFlow, decode: Decode, seed: int, labels: Tensor | None = None) -> Tensor:
    """(N, C, H, W) exact samples: one per label, or `ROWS` rows of `COLUMNS` without."""
    count = ROWS * COLUMNS if labels is None else len(labels)
    images: Tensor = decode(flow, flow.sample_latents(count, seeded(seed, SAMPLES)), labels).images
    return images


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights lie."""
    return next(network.parameters()).device
