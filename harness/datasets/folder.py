"""Images in folders: any of one's own, and AFHQ in its official layout. Classes are subfolders."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from harness.datasets.base import Dataset, datasets
from harness.datasets.decode import EXTENSIONS, Record, decode_records
from harness.datasets.images import Images
from harness.errors import DatasetError

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
TEST_EVERY = 10
"""Of a folder without splits, every tenth image of each class, in order of name, is held out."""

Labelled = list[tuple[Path, int | None]]
"""Image files, each with its class from 0; or all with None."""


class FolderImages(Dataset):
    """What both have in common: every image is a file."""

    @abstractmethod
    def labelled(self, split: str) -> Labelled:
        """The images of a split, in order."""

    def load(self, split: str) -> Images:
        records = [Record(f"'{path}'", path, label) for path, label in self._some(split)]
        return decode_records(records, self.size, self.skip_corrupt)

    def files(self, split: str) -> list[Path]:
        return [path for path, _ in self._some(split)]

    def fingerprint(self, split: str) -> str:
        """That of the files and their labels: a class that only the other split has moves the numbers of this one's."""
        labels = [label for _, label in self._some(split)]
        return hashlib.sha256(f"{super().fingerprint(split)} {labels}".encode()).hexdigest()

    def _some(self, split: str) -> Labelled:
        if found := self.labelled(split):
            return found
        raise DatasetError(f"the {split} split under '{self.root}' holds no images ({', '.join(sorted(EXTENSIONS))})")


@datasets.register("imagefolder")
class ImageFolder(FolderImages):
    """Any folder of images: ROOT/{train,test}/CLASS/*, or ROOT/CLASS/* (every tenth held out), or without classes."""

    def labelled(self, split: str) -> Labelled:
        root = self.required_root("train")
        folders = {name: _split_folder(root, name) for name in SPLIT_FOLDERS}
        given = [folder for folder in folders.values() if folder is not None]
        if not given:
            return [
                image
                for images in _by_class(root, _classes([root]))
                for row, image in enumerate(images, start=1)
                if (row % TEST_EVERY == 0) == (split == "test")
            ]
        folder = folders[split]
        if folder is None:
            wanted = "' or '".join(SPLIT_FOLDERS[split])
            raise DatasetError(f"'{root}' holds '{given[0].name}', but no '{wanted}' for the {split} split")
        return sum(_by_class(folder, _classes(given)), [])


@datasets.register("afhq")
class Afhq(FolderImages):
    """AFHQ, 512x512 unless resized, 3 classes: ROOT/afhq/{train,test or val}/{cat,dog,wild}/*."""

    classes = ("cat", "dog", "wild")

    def labelled(self, split: str) -> Labelled:
        root = self.required_root("afhq/train/cat")
        base = root / "afhq" if (root / "afhq").is_dir() else root
        folder = _split_folder(base, split)
        if folder is None:
            raise DatasetError(f"there is no '{base / SPLIT_FOLDERS[split][0]}' with the folders cat, dog and wild")
        for name in self.classes:
            if not (folder / name).is_dir():
                raise DatasetError(f"there is no folder '{folder / name}'; AFHQ has cat, dog and wild")
        return sum(_by_class(folder, self.classes), [])


def _split_folder(root: Path, split: str) -> Path | None:
    return next((root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()), None)


def _classes(folders: list[Path]) -> list[str]:
    return sorted({child.name for folder in folders for child in folder.iterdir() if child.is_dir() and _images(child)})


def _by_class(folder: Path, classes: Sequence[str]) -> list[Labelled]:
    """The images below a split's folder, class by class; without classes, those that lie in it."""
    if not classes:
        return [[(path, None) for path in _images(folder)]]
    return [[(path, label) for path in _images(folder / name)] for label, name in enumerate(classes)]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
