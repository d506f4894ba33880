"""What a source of real images is: one small file each, found by the registry."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.datasets.images import Images
from harness.errors import DatasetError, unknown
from harness.files import ROOT_VARIABLE, data_root
from harness.registry import Registry, first_line

SPLITS = {"train": (("train", "training"),), "test": (("test", "testing"), ("val", "valid", "validation"))}
"""What the files or folders of each split are called, in any case; the first that is there is taken."""
DECODING = 2
"""Counts the changes of how files become pixels; part of every fingerprint."""

datasets: Registry[type[Dataset]] = Registry("dataset", package="harness.datasets", group="harness.datasets")
"""Every dataset by name; see `load_dataset`."""


class Dataset(ABC):
    """A source of real images.

    Args:
        root: folder that holds the files; by default ``$HARNESS_DATA``.
        size: side of the square images to produce, or None for the dataset's own.
        skip_corrupt: leave unreadable images out and count them, instead of refusing the dataset.
    """

    embedded: ClassVar[bool] = False
    """Whether the images come with a package and need no root."""

    def __init__(self, root: Path | str | None = None, size: int | None = None, skip_corrupt: bool = False) -> None:
        self.root, self.size, self.skip_corrupt = data_root(root), size, skip_corrupt

    @abstractmethod
    def load(self, split: str) -> Images:
        """The ``"train"`` or ``"test"`` split; a `DatasetError` where a file is missing, unreadable or cut short."""

    def files(self, split: str) -> list[Path]:
        """The files under the root that `load` reads, in its order; none where the images come from elsewhere."""
        return []

    def fingerprint(self, split: str) -> str:
        """SHA-256 of what determines `load(split)`: bytes and names of its files, and how they are read.

        Nothing is decoded, except where there are no `files`: then it is the digest of the images.
        """
        paths = self.files(split)
        if not paths:
            return self.load(split).digest
        sha = hashlib.sha256(repr((type(self).__name__, split, self.size, self.skip_corrupt, DECODING)).encode())
        for name, path in sorted((path.relative_to(self.required_root(".")).as_posix(), path) for path in paths):
            sha.update(f"\n{name} ".encode(errors="surrogateescape") + hashlib.sha256(read_bytes(path)).digest())
        return sha.hexdigest()

    def download(self) -> Path:
        """Fetch what is not there into the root folder, where its publisher allows it, else a `DatasetError`."""
        raise DatasetError(f"{first_line(type(self))} This dataset cannot be fetched automatically; put it there.")

    def required_root(self, wanted: str, exists: bool = True) -> Path:
        """The root folder, for a dataset that needs one; `wanted` names what is looked for in it, for the error."""
        if self.root is None:
            raise DatasetError(
                f"this dataset is read from files: give the data root, or set ${ROOT_VARIABLE}, to the folder that "
                f"holds '{wanted}'"
            )
        if exists and not self.root.is_dir():
            raise DatasetError(f"the data root '{self.root}' is not a folder; expected one that holds '{wanted}'")
        return self.root


def of_split(split: str, named: Mapping[Path, str]) -> list[Path]:
    """The files or folders of a split, in order, of those that are there, each with its name but for shards' numbers.

    None where there are none; a `DatasetError` where two different ones claim to be the split.
    """
    kinds = ([path for path in sorted(named) if named[path].lower() in names] for names in SPLITS[split])
    found = next((paths for paths in kinds if paths), [])
    for path in found[1:]:
        if (path.parent, named[path]) != (found[0].parent, named[found[0]]):
            raise DatasetError(f"'{found[0]}' and '{path}' both claim to be the {split} split; take one of them away")
    return found


def entries(folder: Path) -> list[Path]:
    """What a folder holds, in order of name; a `DatasetError` where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DatasetError(f"the folder '{folder}' cannot be read: {error.strerror}") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file; a `DatasetError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"'{path}' cannot be read: {error.strerror}") from error


def load_dataset(
    name: str, split: str, root: Path | str | None = None, size: int | None = None, skip_corrupt: bool = False
) -> Images:
    """One split of a dataset by its registered name; the arguments are those of `Dataset`.

    No such dataset or split, or files that cannot be read, are a `HarnessError`.

    >>> load_dataset("digits", "test").pixels.shape
    torch.Size([359, 1, 8, 8])
    """
    images = _dataset(name, split, root, size, skip_corrupt).load(split)
    if not len(images):
        raise DatasetError(f"the {split} split of '{name}' holds no images")
    return images


def dataset_fingerprint(
    name: str, split: str, root: Path | str | None = None, size: int | None = None, skip_corrupt: bool = False
) -> str:
    """What determines the images that `load_dataset` gives for the same arguments, as SHA-256; nothing is decoded."""
    return _dataset(name, split, root, size, skip_corrupt).fingerprint(split)


def _dataset(name: str, split: str, root: Path | str | None, size: int | None, skip_corrupt: bool) -> Dataset:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return datasets.get(name)(root=root, size=size, skip_corrupt=skip_corrupt)
