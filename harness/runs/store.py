"""The run folder: a manifest, and one folder per table whose Parquet parts are appended atomically.

A process killed at any moment leaves whole parts only. Nothing here imports torch: analysis reads run folders through
`read_run`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ValidationError

from harness.errors import HarnessError, StoreError, unknown
from harness.files import locked, unwritable, write_text
from harness.options import sentence
from harness.runs.parts import Parts
from harness.runs.tables import TABLES, Rows, Table, declared

MANIFEST = "manifest.json"
DAMAGED = "damaged"
FORMAT = 1
"""Version of the folder's layout, stored in the manifest."""


@dataclass(frozen=True)
class Run:
    """A run folder, for reading."""

    path: Path
    manifest: dict[str, Any] = field(repr=False)  # what was run and where, see `RunStore.create`

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Those of every run, and those that probes declared for this one."""
        return declared(self.manifest.get("tables", {})) | TABLES

    @property
    def matrix(self) -> dict[str, Any]:
        """That the run measured; empty of a probe's."""
        return self.manifest.get("matrix") or {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Where its times were measured: what sessions that timed cells tell, `fingerprint` None where theirs differ.

        Workers that time nothing may have fewer threads. Of a run without such sessions, what the manifest says.
        """
        sessions = self.manifest.get("sessions") or {}
        timed = self.rows("timings", ["session"]).column("session").unique().to_pylist()
        facts = [sessions[name]["environment"] for name in timed if name in sessions]
        facts = [one for one in facts if one.get("fingerprint")]
        if not facts:
            return self.manifest.get("environment") or {}
        return facts[0] if len({one["fingerprint"] for one in facts}) == 1 else facts[0] | {"fingerprint": None}

    def table(self, name: str) -> pd.DataFrame:
        """One table, each row once; empty but typed when nothing was measured.

        Raises StoreError: there is no such table, or one of its parts is unreadable; the sentence names it.
        """
        rows = self.rows(name)
        return rows.cast(self.tables[name].schema).to_pandas() if len(rows) else self.tables[name].empty()

    def rows(self, name: str, columns: Collection[str] | None = None, cells: Collection[str] | None = None) -> pa.Table:
        """As `table`, of the columns and cells wanted alone, without what pandas adds: for tables of any size.

        Text columns are dictionary-encoded.
        """
        return self._parts(name).read(columns, cells)

    def cell_ids(self, name: str) -> set[str]:
        """The cells that have rows in a table, those that were skipped aside; reads little else."""
        return self._parts(name).cell_ids()

    def parts(self, name: str) -> list[Path]:
        return self._parts(name).paths()

    def _parts(self, name: str) -> Parts:
        if name not in self.tables:
            raise unknown("table", name, self.tables)
        return Parts(self.path, self.tables[name])


def read_run(path: Path | str) -> Run:
    """Open a run folder for reading. Raises StoreError: it is missing, or no run folder."""
    path = Path(path)
    if not path.is_dir():
        raise StoreError(f"there is no run folder at '{path}'; `harness run MATRIX --out {path}` makes one")
    return Run(path, _read_manifest(path))


@dataclass
class RunStore:
    """A run folder, for writing, locked against a second process; use it as a context manager."""

    run: Run
    damaged: list[Path] = field(default_factory=list)  # parts that were unreadable and moved aside on resuming

    def __post_init__(self) -> None:
        self._lock = locked(self.run.path, "is writing to")
        self._parts = {name: Parts(self.run.path, table) for name, table in self.run.tables.items()}

    @classmethod
    def create(cls, path: Path | str, manifest: dict[str, Any]) -> RunStore:
        """Start a run in a new or empty folder.

        Raises StoreError: the folder holds something already, or cannot be written.

        Args:
            path: the folder.
            manifest: plain values: matrix, environment, versions, digests. The layout's version is added.
        """
        path = Path(path)
        try:
            require_new(path)
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        store = cls(Run(path, {"format": FORMAT, **manifest}))
        try:
            require_new(path)  # another process may have started and ended a run before the lock was ours
            store.write_manifest(store.manifest)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def resume(cls, path: Path | str) -> RunStore:
        """Continue a run: take its lock, clear what a killed process left half-written, move damaged parts aside.

        Raises StoreError: no run folder, in use by another process, or not writable.
        """
        path = Path(path)
        store = cls(read_run(path))
        try:
            for found in store._parts.values():
                found.clear()
                for part in found.damaged():
                    (path / DAMAGED).mkdir(exist_ok=True)
                    store.damaged.append(part.rename(path / DAMAGED / f"{part.parent.stem}-{part.name}"))
        except OSError as error:
            store.close()
            raise unwritable(path, error) from error
        return store

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known of the run; change it through `write_manifest`."""
        return self.run.manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest, atomically."""
        write_text(self.path / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n")
        self.run = Run(self.path, manifest)

    def declare(self, tables: Mapping[str, Table]) -> None:
        """Make room for the tables that a probe writes.

        Raises StoreError: the run holds a table of such a name with other columns.
        """
        there = self.run.tables
        for name, table in tables.items():
            if name in there and there[name] != table:
                raise StoreError(f"'{self.path}' holds a table '{name}' with other columns; give another --out")
        if new := {name: table.declaration() for name, table in tables.items() if name not in there}:
            self.write_manifest(self.manifest | {"tables": self.manifest.get("tables", {}) | new})
            self._parts |= {name: Parts(self.path, tables[name]) for name in new}

    def append(self, table: str, rows: Rows) -> None:
        """Append rows as one part: either all of them are stored or none.

        Raises HarnessError: rows that do not fit the table's schema; StoreError: the folder cannot be written.
        """
        if rows:
            self._parts[table].append(self.run.tables[table].to_arrow(rows))

    def read(self, table: str) -> pd.DataFrame:
        return self.run.table(table)

    def cell_ids(self, table: str) -> set[str]:
        return self.run.cell_ids(table)

    def compact(self) -> None:
        """Merge the small parts of every table; large ones stay as they are."""
        for found in self._parts.values():
            found.merge()

    def close(self) -> None:
        self._lock.lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def require_new(path: Path) -> None:
    """Refuse a folder that holds anything. Raises StoreError: what it holds."""
    if (path / MANIFEST).is_file():
        raise StoreError(f"'{path}' holds a run already; give --resume to finish it, or another --out")
    if tables := [table.name for table in TABLES.values() if Parts(path, table).paths()]:
        raise StoreError(
            f"'{path}' holds rows of a run ({', '.join(tables)}) but its {MANIFEST} is gone; the rows are left as they "
            f"are: put the {MANIFEST} back, or give another --out"
        )
    if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise StoreError(f"'{path}' is not empty and no run folder (it has no {MANIFEST}); give another --out")


class _Matrix(BaseModel):
    quality: dict[str, float | None] = {}
    datasets: list[dict[str, Any]] = []
    decoders: list[dict[str, Any]] = []


class _Environment(BaseModel):
    packages: dict[str, Any] = {}


class _Manifest(BaseModel):
    """What readers of a manifest rely on; it holds more."""

    matrix: _Matrix | None = None
    environment: _Environment | None = None
    sessions: dict[str, dict[str, Any]] | None = None
    checkpoints: dict[str, Any] | None = None


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"'{path}' is no run folder: it has no {MANIFEST}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"'{file}' cannot be read as JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"'{file}' is no manifest of this harness's format {FORMAT}")
    try:
        _Manifest.model_validate(manifest)
        declared(manifest.get("tables", {}))
    except (ValidationError, HarnessError) as error:
        why = sentence(error) if isinstance(error, ValidationError) else error
        raise StoreError(f"'{file}' was not written by this harness: {why}") from error
    return manifest


def _set_aside(run: Path, part: Path) -> Path:
    folder = run / DAMAGED
    folder.mkdir(exist_ok=True)
    return part.rename(folder / f"{part.parent.stem}-{part.name}")
