"""CIFAR-10 and CIFAR-100 from their official binary archives: fixed-size records, no pickle.

A record is one label byte (CIFAR-10) or two, coarse and fine (CIFAR-100), and 3,072 pixel bytes in CHW order.
"""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.datasets.base import Dataset, datasets, read_bytes
from harness.datasets.decode import resize
from harness.datasets.images import Images
from harness.errors import DatasetError
from harness.files import fetch

SITE = "https://www.cs.toronto.edu/~kriz"
PIXELS = 3 * 32 * 32
MOST_BYTES = 1 << 28
"""Of an archive's content; the official ones hold less than 200 MB, and a small file may unpack to any size."""


class CifarArchive(Dataset):
    """What both have in common: the archive, extracted or not, under the root."""

    archive: ClassVar[str]
    md5: ClassVar[str]
    """Of the archive, as published beside it."""
    folder: ClassVar[str]
    """Inside the archive."""
    members: ClassVar[dict[str, tuple[str, ...]]]
    label_classes: ClassVar[tuple[int, ...]]
    """Number of classes of every label byte; the last one is the label."""

    def load(self, split: str) -> Images:
        paths = self.files(split)
        if paths[0].name == self.archive:
            contents = _read_archive(paths[0], [f"{self.folder}/{name}" for name in self.members[split]])
        else:
            contents = {str(path): read_bytes(path) for path in paths}
        parts = [self._records(name, content) for name, content in contents.items()]
        pixels, labels, skipped = zip(*parts, strict=True)
        return Images(resize(torch.cat(pixels), self.size), torch.cat(labels), sum(skipped))

    def files(self, split: str) -> list[Path]:
        root = self.required_root(self.archive)
        extracted, archive = root / self.folder, root / self.archive
        if extracted.is_dir():
            return [extracted / name for name in self.members[split]]
        if archive.is_file():
            return [archive]
        raise DatasetError(
            f"there is neither '{archive}' nor the extracted folder '{extracted}'; fetch {SITE}/{self.archive} and put "
            f"it there, or run 'harness download' where the network allows"
        )

    def download(self) -> Path:
        target = self.required_root(self.archive, exists=False) / self.archive
        return target if target.is_file() else fetch(f"{SITE}/{self.archive}", target, md5=self.md5)

    def _records(self, name: str, content: bytes) -> tuple[Tensor, Tensor, int]:
        """Pixels, labels, and how many corrupt records were left out."""
        classes = len(self.label_classes)
        size = classes + PIXELS
        if not content or len(content) % size:
            raise DatasetError(
                f"'{name}' holds {len(content):,} bytes, which is no multiple of a record's {size:,}: record "
                f"{len(content) // size} is cut short"
            )
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
        label_bytes = records[:, :classes]
        valid = (label_bytes < np.array(self.label_classes)).all(axis=1)
        if not valid.all() and not self.skip_corrupt:
            row = int(np.argmin(valid))
            raise DatasetError(
                f"'{name}', record {row}: label {label_bytes[row].tolist()}, expected below "
                f"{list(self.label_classes)}; --skip-corrupt leaves such out"
            )
        records = records[valid]
        pixels = torch.from_numpy(records[:, classes:].reshape(-1, 3, 32, 32).copy())
        return pixels, torch.from_numpy(records[:, classes - 1].astype(np.int64)), int((~valid).sum())


@datasets.register("cifar10")
class Cifar10(CifarArchive):
    """CIFAR-10, RGB, 32x32, 10 classes, 50,000 + 10,000: ROOT/cifar-10-binary.tar.gz, or extracted."""

    archive = "cifar-10-binary.tar.gz"
    md5 = "c32a1d4ab5d03f1284b67883e8d87530"
    folder = "cifar-10-batches-bin"
    members = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
    label_classes = (10,)


@datasets.register("cifar100")
class Cifar100(CifarArchive):
    """CIFAR-100, RGB, 32x32, 100 fine classes, 50,000 + 10,000: ROOT/cifar-100-binary.tar.gz, or extracted."""

    archive = "cifar-100-binary.tar.gz"
    md5 = "03b5dce01913d631647c71ecec9e9cb8"
    folder = "cifar-100-binary"
    members = {"train": ("train.bin",), "test": ("test.bin",)}
    label_classes = (20, 100)


def _read_archive(path: Path, names: list[str]) -> dict[str, bytes]:
    """Contents of the named members, in the order given, once the whole archive has proved intact."""
    contents: dict[str, bytes] = {}
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    _require_small(stream.tell() + member.size)
                    file = archive.extractfile(member) if member.name.removeprefix("./") in names else None
                    if file is not None:
                        contents[member.name.removeprefix("./")] = file.read()
            while stream.read(1 << 20):  # to the end, where gzip's checksum is
                _require_small(stream.tell())
    except Exception as error:  # hostile bytes get any of Python's errors out of gzip and tarfile
        raise DatasetError(f"'{path}' cannot be read to its end: {error}; it is cut short or corrupt") from error
    if missing := [name for name in names if name not in contents]:
        raise DatasetError(f"'{path}' holds no '{missing[0]}'; expected the binary version of the official archive")
    return {f"{path}/{name}": contents[name] for name in names}


def _require_small(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
