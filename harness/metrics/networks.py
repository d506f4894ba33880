"""The small feature networks: pooled activations of a convolutional network, and the recipes they are trained by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.datasets import Images
from harness.flows.modules import nonfinite

TASKS = ("labels", "rotations")


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a feature network."""

    image_channels: int
    image_size: int
    """Side of its input; other sizes are resampled to it."""
    widths: tuple[int, ...]
    """Channels of each stage; every stage after the first halves the resolution."""
    outputs: int
    """Classes of the task that it was trained on."""
    stem_stride: int = 1
    """Of the very first convolution."""

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


def network_from(state: dict[str, Tensor], config: NetworkConfig) -> FeatureNetwork:
    """A network of these tensors, for features alone; a `ValueError` where they do not fit its shape or are not finite.

    Nothing is allocated for what a file merely claims.
    """
    sizes = (config.image_channels, config.image_size, config.outputs, config.stem_stride, *config.widths)
    if not config.widths or not 0 < min(sizes) <= max(sizes) <= 1 << 14:
        raise ValueError("its shape is no network's")
    with torch.device("meta"):
        network = FeatureNetwork(config)
    for name, tensor in network.state_dict().items():
        if name not in state or state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
            raise ValueError(f"its tensor '{name}' is missing, or not of the shape that the network has")
    if (broken := nonfinite(state)) is not None:
        raise ValueError(f"its tensor '{broken}' is not finite")
    network.load_state_dict({name: state[name] for name in network.state_dict()}, assign=True)
    return network.eval().requires_grad_(False)


def _stage(incoming: int, outgoing: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(incoming, outgoing, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outgoing),
        nn.ReLU(),
        nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=False),
        nn.BatchNorm2d(outgoing),
        nn.ReLU(),
    )


@dataclass(frozen=True)
class Recipe:
    """How a feature network is trained; its shape is described by `NetworkConfig`."""

    task: str
    """``"labels"``, or ``"rotations"``: by which quarter turn an image was rotated, without labels (1803.07728)."""
    image_size: int
    widths: tuple[int, ...]
    epochs: int
    serves: tuple[str, ...]
    """Names of the datasets whose images the features are for."""
    stem_stride: int = 1
    flips: bool = False
    """Mirror half of the images."""
    batch_size: int = 128
    learning_rate: float = 4e-3


RECIPES = {
    "digits": Recipe("labels", 8, (32, 64, 64), epochs=12, serves=("digits",)),
    "cifar10-jpeg": Recipe(
        "labels", 32, (32, 64, 128), epochs=5, serves=("cifar10-jpeg", "cifar10", "cifar100"), stem_stride=2, flips=True
    ),
    "afhq-cat": Recipe(
        "rotations", 64, (32, 64, 64, 64), epochs=10, serves=("afhq-cat", "afhq"), stem_stride=2, flips=True
    ),
}
"""The networks that are shipped. Any other dataset gets `default_recipe`."""


def default_recipe(dataset: str, train: Images) -> Recipe:
    """A recipe for a dataset of one's own, at the size of its images: labels where it has several, else rotations."""
    labelled = train.labels is not None and train.labels.unique().numel() > 1
    size = train.pixels.shape[-1]
    widths = (32, 64, 128) if size <= 32 else (32, 64, 64, 64)
    return Recipe(
        "labels" if labelled else "rotations", size, widths, epochs=10, serves=(dataset,), stem_stride=2, flips=True
    )
