"""What the training loop and the release ask of a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.flows.protocols import CausalFlow
from harness.training.config import TrainingConfig
from harness.training.data import SAMPLES, Batch, seeded

Decode = Callable[..., Any]
"""``Decoder.decode``: flow, latents (B, L, D), labels -> a result with `tokens` (B, L, D) and `images` (B, C, H, W)."""

COLUMNS, ROWS = 8, 8
"""Of a grid of samples."""


@dataclass(frozen=True)
class Samples:
    """Samples to look at."""

    images: Tensor
    """(N, C, H, W) in [-1, 1]."""
    columns: int
    """Images per row of the grid."""
    caption: str


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
    device = torch.device("cpu")
    """Where batches are made."""
    fused = False
    """Which of torch's two AdamW trains the network: they differ in the last bits, and shipped flows had either."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A new network, its weights drawn from torch's global generator."""

    def place(self, device: torch.device) -> None:  # noqa: B027 - a hook
        """Keep the data on the device that trains, and make batches there, where that is possible and they fit."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """What the step, counted from 0, learns from: tensors whose first dimension is the batch, on `device`."""

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


def draw_images(flow: CausalFlow, decode: Decode, seed: int, labels: Tensor | None = None) -> Tensor:
    """(N, C, H, W) exact samples: one per label, or `ROWS` rows of `COLUMNS` without."""
    count = ROWS * COLUMNS if labels is None else len(labels)
    images: Tensor = decode(flow, flow.sample_latents(count, seeded(seed, SAMPLES)), labels).images
    return images


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights lie."""
    return next(network.parameters()).device
