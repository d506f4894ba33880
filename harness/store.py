"""The run folder: a manifest, and one folder per table whose Parquet parts are appended atomically.

A part is written beside its place, synced, and renamed into it, so that a process killed at any moment leaves whole
parts only. Nothing here imports torch: analysis reads run folders through `read_run`.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from harness.errors import StoreError, unknown
from harness.tables import KEYS, TABLES, empty, to_arrow

MANIFEST = "manifest.json"
LOCK = ".lock"
DAMAGED = "damaged"
FORMAT = 1
"""Version of the folder's layout, stored in the manifest."""


@dataclass(frozen=True)
class Run:
    """A run folder, for reading.

    Args:
        path: the folder.
        manifest: what was run and where; see `RunStore.create`.
    """

    path: Path
    manifest: dict[str, Any]

    def table(self, name: str) -> pd.DataFrame:
        """One table, each row once; empty but typed when nothing was measured.

        Raises:
            StoreError: there is no such table, or one of its parts is unreadable; the sentence names it.
        """
        if name not in TABLES:
            raise unknown("table", name, TABLES)
        return _frame(name, [_read_part(path, name) for path in parts(self.path, name)])


def read_run(path: Path | str) -> Run:
    """Open a run folder for reading.

    Raises:
        StoreError: it is missing, or no run folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise StoreError(f"there is no run folder at '{path}'; `harness run MATRIX --out {path}` makes one")
    return Run(path, _read_manifest(path))


def parts(run: Path, table: str) -> list[Path]:
    """The part files of one table, the oldest first."""
    return sorted((run / f"{table}.parquet").glob("part-*.parquet"))


@dataclass
class RunStore:
    """A run folder, for writing, locked against a second process; use it as a context manager.

    Args:
        run: the folder and its manifest.
        damaged: parts that were unreadable and moved aside when the run was resumed.
    """

    run: Run
    damaged: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = _locked(self.run.path)

    @classmethod
    def create(cls, path: Path | str, manifest: dict[str, Any]) -> RunStore:
        """Start a run in a new or empty folder.

        Args:
            path: the folder.
            manifest: plain values: matrix, environment, versions, digests. The layout's version is added.

        Raises:
            StoreError: the folder holds something already, or cannot be written.
        """
        path = Path(path)
        if (path / MANIFEST).is_file():
            raise StoreError(f"'{path}' holds a run already; give --resume to finish it, or another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(not entry.name.startswith(".") for entry in path.iterdir()):
                raise StoreError(f"'{path}' is not empty and no run folder (it has no {MANIFEST}); give another --out")
        except OSError as error:
            raise _unwritable(path, error) from error
        store = cls(Run(path, {"format": FORMAT, **manifest}))
        store.write_manifest(store.manifest)
        return store

    @classmethod
    def resume(cls, path: Path | str) -> RunStore:
        """Continue a run: take its lock, clear what a killed process left half-written, move damaged parts aside.

        Raises:
            StoreError: no run folder, in use by another process, or not writable.
        """
        path = Path(path)
        store = cls(read_run(path))
        try:
            for table in TABLES:
                for leftover in (path / f"{table}.parquet").glob(".part-*.tmp"):
                    leftover.unlink()
                for part in parts(path, table):
                    try:
                        _read_part(part, table)
                    except StoreError:
                        store.damaged.append(_set_aside(path, part))
        except OSError as error:
            store.close()
            raise _unwritable(path, error) from error
        return store

    @property
    def path(self) -> Path:
        """The folder."""
        return self.run.path

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known of the run; change it through `write_manifest`."""
        return self.run.manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest, atomically."""
        text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n"
        _replace(self.path / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self.run = Run(self.path, manifest)

    def append(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Append rows as one part: either all of them are stored or none.

        Raises:
            HarnessError: rows that do not fit the table's schema.
            StoreError: the folder cannot be written.
        """
        if rows:
            self._write_part(table, to_arrow(table, rows))

    def read(self, table: str) -> pd.DataFrame:
        """As `Run.table`."""
        return self.run.table(table)

    def compact(self) -> None:
        """Merge the parts of every table into one. Killed half-way it leaves rows twice, which reading undoes."""
        for table, schema in TABLES.items():
            old = parts(self.path, table)
            if len(old) > 1:
                self._write_part(table, pa.Table.from_pandas(self.read(table), schema=schema, preserve_index=False))
                for path in old:
                    path.unlink()

    def _write_part(self, table: str, rows: pa.Table) -> None:
        folder = self.path / f"{table}.parquet"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.parquet"  # so that parts sort by age
        _replace(folder / name, lambda temporary: pq.write_table(rows, temporary))

    def close(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _frame(table: str, tables: list[pa.Table]) -> pd.DataFrame:
    """Parts as one frame, each key once: the first that was not skipped."""
    if not tables:
        return empty(table)
    frame = pa.concat_tables(tables).to_pandas()
    if "status" in frame:
        frame = frame.sort_values("status", key=lambda status: status == "skipped", kind="stable")
    return frame.drop_duplicates(KEYS[table]).reset_index(drop=True)


def _read_part(path: Path, table: str) -> pa.Table:
    """A part, in the table's schema; columns that came later are null."""
    schema = TABLES[table]
    try:
        found = pq.ParquetFile(path).read()
        columns = [
            found[name].cast(kind) if name in found.column_names else pa.nulls(len(found), kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
        return pa.Table.from_arrays(columns, schema=schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise StoreError(
            f"'{path}' is damaged ({reason}); `harness run` with --resume moves it aside and measures its rows again, "
            "all other rows are kept"
        ) from error


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"'{path}' is no run folder: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"'{file}' cannot be read as JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"'{file}' is no manifest of this harness's format {FORMAT}")
    return manifest


def _replace(path: Path, write: Any) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, rename it there, and sync the folder."""
    temporary = path.with_name(f".{path.stem}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _set_aside(run: Path, part: Path) -> Path:
    folder = run / DAMAGED
    folder.mkdir(exist_ok=True)
    return part.rename(folder / f"{part.parent.stem}-{part.name}")


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise StoreError(f"another process is writing to '{path}'; wait for it or give another --out") from error
    except OSError as error:
        raise _unwritable(path, error) from error
    return lock


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write to '{path}': {error.strerror or error}")
