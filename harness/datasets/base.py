"""Where real images come from: one small file per source, found by the registry."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from harness.errors import DatasetError, unknown
from harness.files import ROOT_VARIABLE, data_root
from harness.registry import Registry, first_line

SPLITS = ("train", "test")

datasets: Registry[type[Dataset]] = Registry("dataset", package="harness.datasets", group="harness.datasets")
"""Every dataset by name; see `load_dataset`."""


@dataclass(frozen=True)
class Images:
    """One split of a dataset, decoded and at its final size.

    Args:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64 classes from 0, or None when there are none.
        skipped: corrupt images left out.
    """

    pixels: Tensor
    labels: Tensor | None = None
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def digest(self) -> str:
        """SHA-256 of pixels and labels: what identifies the data in a run's manifest."""
        sha = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        sha.update(self.pixels.contiguous().numpy().tobytes())
        if self.labels is not None:
            sha.update(self.labels.numpy().tobytes())
        return sha.hexdigest()

    def scaled(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(n, C, H, W) float32 images in [-1, 1], as flows take them."""
        return to_unit(self.pixels[rows])


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1.

    >>> to_unit(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return pixels.float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8 0..255, clipped and rounded; the inverse of `to_unit`.

    >>> to_pixels(torch.tensor([-1.0, 0.0, 1.5]))
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Dataset(ABC):
    """A source of real images.

    Args:
        root: folder that holds the files; by default ``$HARNESS_DATA``. Embedded datasets need none.
        size: side of the square images to produce, or None for the dataset's own.
        skip_corrupt: leave unreadable images out and count them, instead of refusing the dataset.
    """

    embedded: ClassVar[bool] = False
    """Whether the images come with a package and need no root."""
    class_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, root: Path | str | None = None, size: int | None = None, skip_corrupt: bool = False) -> None:
        self.root = data_root(root)
        self.size, self.skip_corrupt = size, skip_corrupt

    def required_root(self, wanted: str, exists: bool = True) -> Path:
        """The root folder, for a dataset that needs one; `wanted` names what is looked for in it.

        Raises:
            DatasetError: no root was given, or it should exist and is no folder.
        """
        if self.root is None:
            raise DatasetError(
                f"this dataset is read from files: give the data root, or set ${ROOT_VARIABLE}, to the folder that "
                f"holds '{wanted}'"
            )
        if exists and not self.root.is_dir():
            raise DatasetError(f"the data root '{self.root}' is not a folder; expected one that holds '{wanted}'")
        return self.root

    def download(self) -> Path:
        """Fetch the files into the root folder, where their publisher allows it.

        Returns:
            What was fetched, or what was there already.

        Raises:
            DatasetError: this dataset cannot be fetched automatically.
        """
        raise DatasetError(f"{first_line(type(self))} This dataset cannot be fetched automatically; put it there.")

    @abstractmethod
    def load(self, split: str) -> Images:
        """The ``"train"`` or ``"test"`` split.

        Raises:
            DatasetError: a file is missing, unreadable or cut short; the sentence names it and says what would help.
        """


def load_dataset(
    name: str, split: str, root: Path | str | None = None, size: int | None = None, skip_corrupt: bool = False
) -> Images:
    """One split of a dataset by its registered name; the arguments are those of `Dataset`.

    Raises:
        HarnessError: no such dataset or split, or its files cannot be read.

    Example:
        >>> load_dataset("digits", "test").pixels.shape
        torch.Size([359, 1, 8, 8])
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    images = datasets.get(name)(root=root, size=size, skip_corrupt=skip_corrupt).load(split)
    if not len(images):
        raise DatasetError(f"the {split} split of '{name}' holds no images")
    return images
