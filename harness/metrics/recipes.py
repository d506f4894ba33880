"""How the feature networks are trained: one recipe for each that is shipped, and one for everything else."""

from __future__ import annotations

from dataclasses import dataclass

from harness.datasets import Images

TASKS = ("labels", "rotations")


@dataclass(frozen=True)
class Recipe:
    """How a feature network is trained.

    Args:
        task: ``"labels"``, or ``"rotations"`` (by which quarter turn an image was rotated; Gidaris et al., arXiv
            1803.07728), which needs no labels.
        image_size: side that images are loaded at.
        widths: see `NetworkConfig`.
        stem_stride: see `NetworkConfig`.
        epochs: passes over the train split.
        flips: mirror half of the images.
        serves: names of the datasets whose images the features are for.
    """

    task: str
    image_size: int
    widths: tuple[int, ...]
    epochs: int
    serves: tuple[str, ...]
    stem_stride: int = 1
    flips: bool = False
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
