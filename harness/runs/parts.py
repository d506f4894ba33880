"""One table of a run folder: Parquet parts that are appended atomically, and merged when small ones are many.

A part is never changed. Its name begins with the time it was written, which never goes back within a table, so that
parts sort by age, and ends with a digest of its content; its pages carry checksums, which every reader checks. Many
small parts are merged into one under the oldest one's time; a process killed between the two steps leaves rows twice,
which reading undoes.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.errors import StoreError
from harness.files import make_folder, replacing, unwritable
from harness.runs.tables import TEXT, Table

MANY = 64
"""So many small parts are merged: reading opens few files, and every row is written again a bounded number of times."""
LARGE = 8 << 20
"""Bytes from which a part is left as it is."""
_DIGEST = re.compile(r"[0-9a-f]{32}")
BATCH = 1 << 17
"""Rows that are held at a time while they are checked or filtered."""


class Parts:
    """The parts of one table. Any number of processes may read them; one may write, see `harness.runs.store`."""

    def __init__(self, run: Path, table: Table) -> None:
        self.table, self.schema, self.folder = table, table.schema, run / f"{table.name}.parquet"

    def paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("part-*.parquet") if path.is_file())

    def read(self, columns: Collection[str] | None = None, cells: Collection[str] | None = None) -> pa.Table:
        """The rows, each key once, the oldest first; text is dictionary-encoded.

        Of rows with the same key the first counts; before it those that were measured count, and before these those
        that nothing is said of. Raises StoreError: a part is unreadable; the sentence names it.

        Args:
            columns: those that are wanted; all by default.
            cells: the `cell_id` of the rows that are wanted; all by default.
        """
        wanted = [name for name in self.schema.names if columns is None or name in columns]
        telling = {*self.table.key, *({"status", "error"} & set(self.schema.names)), "cell_id"}
        names = [name for name in self.schema.names if name in wanted or name in telling]
        return _each_once(self.table.key, self._scan(names, cells)).select(wanted)

    def cell_ids(self) -> set[str]:
        """The cells that have a row which was not skipped; the columns that do not tell are left unread."""
        rows = self._scan([name for name in ("cell_id", "status") if name in self.schema.names])
        if "status" in rows.column_names:
            rows = rows.filter(pc.not_equal(rows["status"].cast(TEXT), "skipped"))
        return set(pc.unique(rows["cell_id"].cast(TEXT)).to_pylist())

    def append(self, rows: pa.Table) -> None:
        """Write rows as one part: all of them or none. Raises StoreError: the folder cannot be written."""
        make_folder(self.folder)
        small, self._newest = self._small, max(time.time_ns(), self._newest + 1)
        small.append(self._write(rows, self._newest))
        if len(small) >= MANY:
            self._merge_oldest()

    def merge(self) -> None:
        """Merge the small parts until one is left."""
        while len(self._small) > 1:
            self._merge_oldest()

    def damaged(self) -> list[Path]:
        """The parts that cannot be read to their end."""
        paths = self.paths()
        with ThreadPoolExecutor() as threads:  # reading and hashing both let other threads go on
            return [path for path, sound in zip(paths, threads.map(self._sound, paths), strict=True) if not sound]

    def clear(self) -> None:
        """Remove what a killed process left half-written."""
        for leftover in self.folder.glob(".part-*.tmp"):
            leftover.unlink()

    @cached_property
    def _small(self) -> list[Path]:
        return [path for path in self.paths() if path.stat().st_size < LARGE]

    @cached_property
    def _newest(self) -> int:
        """The latest time in a name: a clock that is set back does not make new parts older."""
        return max(map(_stamp, self.paths()), default=0)

    def _merge_oldest(self) -> None:
        """Write the oldest small parts, as many as make a large one, as one."""
        merged, size = [self._small[0]], self._small[0].stat().st_size
        for path in self._small[1:]:
            size += path.stat().st_size
            if size > LARGE and len(merged) > 1:
                break
            merged.append(path)
        rows = pa.concat_tables([batch for path in merged for batch in self._batches(path, self.schema.names)])
        whole = self._write(rows, _stamp(merged[0]))
        try:
            for path in merged:
                path.unlink()
        except OSError as error:
            raise unwritable(self.folder, error) from error
        kept = [whole] if whole.stat().st_size < LARGE else []
        self._small[:] = kept + self._small[len(merged) :]

    def _write(self, rows: pa.Table, stamp: int) -> Path:
        buffer = io.BytesIO()
        pq.write_table(rows.cast(self.schema), buffer, write_page_checksum=True)
        path = self.folder / f"part-{stamp:020d}-{_digest(buffer)}.parquet"
        with replacing(path) as partial:
            partial.write_bytes(buffer.getbuffer())
        return path

    def _sound(self, path: Path) -> bool:
        try:
            if _DIGEST.fullmatch(stated := path.stem.rpartition("-")[2]):
                with path.open("rb") as file:
                    return _digest(file) == stated
            for _ in self._batches(path, self.schema.names):
                pass
        except (StoreError, OSError):
            return False
        return True

    def _scan(self, names: list[str], cells: Collection[str] | None = None) -> pa.Table:
        """Columns of all parts; rows that are there twice are found twice."""
        wanted = None if cells is None else pa.array(sorted(cells), TEXT)
        while True:
            try:
                found = [batch for path in self.paths() for batch in self._batches(path, names, wanted)]
                return pa.concat_tables([self._empty(names), *found])
            except FileNotFoundError:  # a writer has merged parts since they were listed
                continue

    def _batches(self, path: Path, names: list[str], cells: pa.Array | None = None) -> Iterator[pa.Table]:
        """A part in pieces, in the table's schema; columns that came later are null.

        Raises StoreError: it is no Parquet file, is damaged, or lacks a column of the key; FileNotFoundError: it is
        gone.
        """
        try:
            metadata = pq.read_metadata(path)
            there = metadata.schema.to_arrow_schema().names
            text = [name for name in names if self.schema.field(name).type == TEXT and name in there]
            with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True, read_dictionary=text) as file:
                if lacking := [name for name in self.table.key if name not in there]:
                    raise ValueError(f"it has no column {lacking[0]}")
                for batch in file.iter_batches(BATCH, columns=[name for name in names if name in there]):
                    rows = self._conformed(batch, names)
                    yield rows if cells is None else rows.filter(pc.is_in(rows["cell_id"].cast(TEXT), cells))
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"'{path}' is damaged ({_reason(error)}); `harness run` with --resume moves it aside and measures its "
                "rows again, all other rows are kept"
            ) from error

    def _conformed(self, batch: pa.RecordBatch, names: list[str]) -> pa.Table:
        wanted = self._empty(names).schema
        there = set(batch.schema.names)
        return pa.Table.from_arrays(
            [
                batch.column(field.name).cast(field.type) if field.name in there else pa.nulls(len(batch), field.type)
                for field in wanted
            ],
            schema=wanted,
        )

    def _empty(self, names: list[str]) -> pa.Table:
        fields = [self.schema.field(name) for name in names]
        encoded = pa.dictionary(pa.int32(), TEXT)
        return pa.schema([f.with_type(encoded) if f.type == TEXT else f for f in fields]).empty_table()


def _each_once(key: tuple[str, ...], rows: pa.Table) -> pa.Table:
    telling = [name for name in (*key, "status", "error") if name in rows.column_names]
    frame = rows.select(telling).to_pandas()
    if "status" in frame:
        rank = 2 * (frame["status"] == "skipped").to_numpy() + frame["error"].notna().to_numpy()
        frame = frame.iloc[np.argsort(rank, kind="stable")]
    twice = frame.duplicated(list(key))
    if not twice.any():
        return rows
    kept = np.ones(len(frame), dtype=bool)
    kept[frame.index[twice]] = False
    return rows.filter(pa.array(kept))


def _digest(file: Any) -> str:
    file.seek(0)
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _stamp(path: Path) -> int:
    text = path.name.split("-")[1]
    return int(text) if text.isdecimal() else 0


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
