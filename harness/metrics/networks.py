"""The small feature networks shipped for datasets: pooled activations of a convolutional network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a feature network.

    Args:
        image_channels: of its input.
        image_size: side of its input; other sizes are resampled to it.
        widths: channels of each stage; every stage after the first halves the resolution. Their sum is the number of
            features.
        outputs: classes of the task that it was trained on.
        stem_stride: of the very first convolution.
    """

    image_channels: int
    image_size: int
    widths: tuple[int, ...]
    outputs: int
    stem_stride: int = 1

    @property
    def dim(self) -> int:
        """Number of features."""
        return sum(self.widths)


class FeatureNetwork(nn.Module):
    """Two convolutions a stage; the features are the mean activations of every stage, next to each other.

    Early stages respond to texture and noise, late ones to what the image shows, so the distance of two sets of
    features sees both.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        incoming = (config.image_channels, *config.widths)
        self.stages = nn.ModuleList(
            _stage(before, after, config.stem_stride if number == 0 else 2)
            for number, (before, after) in enumerate(zip(incoming, config.widths, strict=False))
        )
        self.head = nn.Linear(config.dim, config.outputs)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] to (B, dim)."""
        size = (self.config.image_size, self.config.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
        pooled = []
        for stage in self.stages:
            images = stage(images)
            pooled.append(images.mean(dim=(2, 3)))
        return torch.cat(pooled, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] to (B, outputs) logits."""
        return self.head(self.features(images))


def _stage(incoming: int, outgoing: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(incoming, outgoing, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outgoing),
        nn.ReLU(),
        nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=False),
        nn.BatchNorm2d(outgoing),
        nn.ReLU(),
    )
