"""Images in folders: any of one's own, and AFHQ in its official layout. Classes are subfolders."""

from __future__ import annotations

from pathlib import Path

from harness.datasets.base import Dataset, Images, datasets
from harness.datasets.decode import EXTENSIONS, Record, decode_records
from harness.errors import DatasetError

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
TEST_EVERY = 10
"""Of a folder without splits, every tenth image of each class, in order of name, is held out."""


@datasets.register("imagefolder")
class ImageFolder(Dataset):
    """Any folder of images: ROOT/{train,test}/CLASS/*, or ROOT/CLASS/* (every tenth held out), or without classes."""

    def load(self, split: str) -> Images:
        """The split; classes are numbered by the sorted names of all subfolders, of both splits."""
        root = self.required_root("train")
        folders = {name: _split_folder(root, name) for name in SPLIT_FOLDERS}
        given = [folder for folder in folders.values() if folder is not None]
        if given:
            folder = folders[split]
            if folder is None:
                wanted = "' or '".join(SPLIT_FOLDERS[split])
                raise DatasetError(f"'{root}' holds '{given[0].name}', but no '{wanted}' for the {split} split")
            classes = _classes(given)
            records = _records(folder, classes)
        else:
            classes = _classes([root])
            records = [
                record
                for part in _by_label(_records(root, classes))
                for row, record in enumerate(part)
                if (row % TEST_EVERY == TEST_EVERY - 1) == (split == "test")
            ]
        if not records:
            raise DatasetError(f"the {split} split under '{root}' holds no images ({', '.join(sorted(EXTENSIONS))})")
        return decode_records(records, self.size, self.skip_corrupt)


@datasets.register("afhq")
class Afhq(Dataset):
    """AFHQ, 512x512 unless resized, 3 classes: ROOT/afhq/{train,test or val}/{cat,dog,wild}/*."""

    class_names = ("cat", "dog", "wild")

    def load(self, split: str) -> Images:
        """The split; labels 0 cat, 1 dog, 2 wild."""
        root = self.required_root("afhq/train/cat")
        base = root / "afhq" if (root / "afhq").is_dir() else root
        folder = _split_folder(base, split)
        if folder is None:
            raise DatasetError(f"there is no '{base / SPLIT_FOLDERS[split][0]}' with the folders cat, dog and wild")
        for name in self.class_names:
            if not (folder / name).is_dir():
                raise DatasetError(f"there is no folder '{folder / name}'; AFHQ has cat, dog and wild")
        return decode_records(_records(folder, list(self.class_names)), self.size, self.skip_corrupt)


def _split_folder(root: Path, split: str) -> Path | None:
    return next((root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()), None)


def _classes(folders: list[Path]) -> list[str]:
    """Sorted names of the subfolders that hold images."""
    return sorted({child.name for folder in folders for child in folder.iterdir() if child.is_dir() and _images(child)})


def _records(folder: Path, classes: list[str]) -> list[Record]:
    """Every image below a split's folder, class by class; without classes, those that lie in it."""
    if not classes:
        return [Record(f"'{path}'", path) for path in _images(folder)]
    return [
        Record(f"'{path}'", path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in _images(folder / name)
    ]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())


def _by_label(records: list[Record]) -> list[list[Record]]:
    labels = sorted({-1 if record.label is None else record.label for record in records})
    return [[r for r in records if (-1 if r.label is None else r.label) == label] for label in labels]
