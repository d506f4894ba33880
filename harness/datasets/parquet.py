"""Images in Parquet, as hubs and `harness sample` write them: ``img: {bytes, path}`` (or ``image``) and ``label``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.datasets.base import Dataset, datasets, entries, of_split
from harness.datasets.decode import Record, decode_records
from harness.datasets.images import Images
from harness.errors import DatasetError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")

MOST_CLASSES = 1 << 31
"""A label beyond is a mistake."""


@datasets.register("parquet")
class ParquetImages(Dataset):
    """Any images, grey or RGB, in Parquet: ROOT/{train,test}.parquet, or shards such as ROOT/data/train-0-of-2.parquet.

    The splits may be called as those of `ImageFolder`. Labels are classes from 0; if all are null there are none.
    """

    folder: ClassVar[str] = ""
    """Where the files lie under the root."""

    def load(self, split: str) -> Images:
        records = [record for shard in self.files(split) for record in _records(shard)]
        unlabelled = [record for record in records if record.label is None]
        if 0 < len(unlabelled) < len(records):
            raise DatasetError(f"{unlabelled[0].name}: the label is missing, and other rows have one")
        return decode_records(records, self.size, self.skip_corrupt)

    def files(self, split: str) -> list[Path]:
        folder = self.required_root(f"{self.folder or '.'}/{split}.parquet") / self.folder
        there = [path for where in (folder, folder / "data") if where.is_dir() for path in entries(where)]
        tables = {path: path.stem.partition("-")[0] for path in there if path.suffix.lower() == ".parquet"}
        shards = of_split(split, tables)
        if not shards:
            raise DatasetError(f"there is no '{split}.parquet' (or '{split}-*.parquet') in '{folder}'")
        return shards


@datasets.register("cifar10-jpeg")
class Cifar10Jpeg(ParquetImages):
    """CIFAR-10 recompressed as JPEG, RGB, 32x32, 10 classes, 50,000 + 10,000: ROOT/cifar10/{train,test}.parquet.

    Its FID and bits per dimension are not comparable with figures published for CIFAR-10, hence a name of its own.
    """

    folder = "cifar10"


@datasets.register("afhq-cat")
class AfhqCat(ParquetImages):
    """AFHQ's cats, RGB, 256x256 unless resized, one class, 4,653 + 500: ROOT/afhq-cat/{train,test}.parquet."""

    folder = "afhq-cat"


def _records(path: Path) -> list[Record]:
    try:
        schema = pq.read_schema(path)
        image, label = _first(schema, IMAGE_COLUMNS), _first(schema, LABEL_COLUMNS)
        if image is None or not _holds_bytes(schema.field(image).type):
            raise DatasetError(
                f"'{path}' has the columns {', '.join(schema.names)}; expected images as 'img' (or 'image'), a struct "
                "with a field 'bytes'"
            )
        table = pq.read_table(path, columns=[image, *([label] if label else [])])
        encoded = pc.struct_field(table[image], "bytes").to_pylist()
        labels = table[label].to_pylist() if label else [None] * len(table)
    except DatasetError:
        raise
    except Exception as error:  # hostile bytes get any of Python's errors out of it
        raise DatasetError(f"'{path}' cannot be read as Parquet: {error}; it may be cut short") from error
    for row, value in enumerate(labels if label else []):
        if value is not None and not (isinstance(value, int) and 0 <= value < MOST_CLASSES):
            raise DatasetError(f"'{path}', row {row}: the label is {value!r}, expected a class from 0")
    return [
        Record(f"'{path}', row {row}", data or b"", value)
        for row, (data, value) in enumerate(zip(encoded, labels, strict=True))
    ]


def _holds_bytes(column: pa.DataType) -> bool:
    index = column.get_field_index("bytes") if pa.types.is_struct(column) else -1
    return index >= 0 and (
        pa.types.is_binary(column.field(index).type) or pa.types.is_large_binary(column.field(index).type)
    )


def _first(schema: pa.Schema, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in schema.names), None)
