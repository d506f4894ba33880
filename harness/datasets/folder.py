"""Images in folders: any of one's own, and AFHQ in its official layout. Classes are subfolders."""

from __future__ import annotations

import hashlib
import os
import re
from abc import abstractmethod
from pathlib import Path

from harness.datasets.base import SPLITS, Dataset, datasets, entries, of_split
from harness.datasets.decode import EXTENSIONS, Record, decode_records
from harness.datasets.images import Images
from harness.errors import DatasetError

STRAY = ("__macosx", "@eadir", "$recycle.bin")
"""Folders, in lower case, that systems leave behind; so is everything whose name begins with a dot."""
NAMES_OF_SPLITS = {name for kinds in SPLITS.values() for names in kinds for name in names}
TEST_EVERY = 10
"""Of a folder without splits, every tenth image of each class, in order of name, is held out."""
SHOWN = 5
"""Folders that an error names."""

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
    """Any images, grey or RGB: ROOT/{train,test}/CLASS/*, or ROOT/CLASS/* (every tenth held out), or without classes.

    The splits may be called training, testing, val, valid or validation too, in any case; hidden entries are ignored.
    A folder holds either images or folders of images: any other layout is refused, since it would have to be guessed.
    """

    def labelled(self, split: str) -> Labelled:
        root = self.required_root("train")
        loose, folders = _entries(root)
        splits = {name: of_split(name, {folder: folder.name for folder in folders})[:1] for name in SPLITS}
        given = sum(splits.values(), [])
        words = {word for folder in folders for word in re.findall("[a-z]+", folder.name.lower())}
        like_splits = [name for name, kinds in SPLITS.items() if words & set(sum(kinds, ()))]
        if (loose or not {path.name.lower() for path in folders} <= NAMES_OF_SPLITS) if given else len(like_splits) > 1:
            raise _ambiguous(root)
        if given and not splits[split]:
            wanted = "' or '".join(names[0] for names in SPLITS[split])
            raise DatasetError(f"'{root}' holds '{given[0].name}', but no '{wanted}' for the {split} split")
        trees = {folder: _tree(folder) for folder in given or [root]}
        names = {name for tree in trees.values() for name in tree}
        if len(names) > 1 and "" in names or len({name.casefold() for name in names}) < len(names):
            raise DatasetError(f"the splits in '{root}' differ in what classes are called, or whether there are any")
        classes = sorted(names, key=lambda name: (int(name) if name.isdecimal() else -1, name))
        found = [
            (path, None if name == "" else label, row)
            for label, name in enumerate(classes)
            for row, path in enumerate(trees[(splits[split] or [root])[0]].get(name, []), start=1)
        ]
        return [(path, label) for path, label, row in found if given or (row % TEST_EVERY == 0) == (split == "test")]


@datasets.register("afhq")
class Afhq(FolderImages):
    """AFHQ, RGB, 512x512 unless resized, 3 classes: ROOT/afhq/{train,test or val}/{cat,dog,wild}/*."""

    classes = ("cat", "dog", "wild")

    def labelled(self, split: str) -> Labelled:
        root = self.required_root("afhq/train/cat")
        base = root / "afhq" if (root / "afhq").is_dir() else root
        found = of_split(split, {folder: folder.name for folder in entries(base) if folder.is_dir()})
        if not found:
            raise DatasetError(f"there is no '{base / split}' with the folders cat, dog and wild")
        for name in self.classes:
            if not (found[0] / name).is_dir():
                raise DatasetError(f"there is no folder '{found[0] / name}'; AFHQ has cat, dog and wild")
        return [(path, label) for label, name in enumerate(self.classes) for path in _images(found[0] / name)]


def _tree(folder: Path) -> dict[str, list[Path]]:
    """The images of each class folder by its name, or those of a folder without classes by none."""
    images, folders = _entries(folder)
    if images and folders:
        raise _ambiguous(folder)
    return {path.name: _images(path) for path in folders} or {"": images}


def _images(folder: Path) -> list[Path]:
    images, folders = _entries(folder)
    if folders:
        raise _ambiguous(folder)
    return images


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images in a folder, and the folders in it that have images somewhere, both in order, links followed."""
    there = [path for path in entries(folder) if _counts(path.name)]
    images = [path for path in there if _is_image(path.name) and (path.is_file() or path.is_symlink())]
    folders = [path for path in there if path.is_dir() and _has_images(path)]
    return [path for path in images if path not in folders], folders


def _has_images(folder: Path) -> bool:
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        seen.add(os.path.realpath(path))
        folders[:] = [name for name in folders if _counts(name) and os.path.realpath(f"{path}/{name}") not in seen]
        if any(_counts(name) and _is_image(name) for name in files):
            return True
    return False


def _unreadable(error: OSError) -> None:
    raise DatasetError(f"the folder '{error.filename}' cannot be read: {error.strerror}") from error


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in STRAY


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _ambiguous(folder: Path) -> DatasetError:
    images, folders = _entries(folder)
    names = ", ".join(repr(path.name) for path in folders[:SHOWN]) + (", ..." if len(folders) > SHOWN else "")
    return DatasetError(
        f"'{folder}' holds {len(images)} images and {len(folders)} folders of images ({names}): what the classes are "
        "would have to be guessed; expected ROOT/{train,test}/CLASS/*, ROOT/CLASS/*, ROOT/{train,test}/* or ROOT/*, "
        "with nothing else beside or below"
    )
