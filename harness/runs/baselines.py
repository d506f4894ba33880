"""Stored baselines: run folders small enough to be kept with the code, under ``results/baselines/NAME``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, StoreError, unknown
from harness.files import LOCK, file_name
from harness.runs.store import Run, RunStore, read_run
from harness.runs.tables import TABLES

FOLDER = Path("results") / "baselines"
RESULTS = (Path(__file__).parents[2] / "results", Path("results"))
"""Where stored runs lie: beside this package's source, and below the working folder."""
MAX_BYTES = 2_000_000
KEPT = tuple(name for name in TABLES if name != "residuals")
"""The tables that a comparison needs; `residuals` has a row per network call and would be most of the bytes."""


def baselines() -> dict[str, Path]:
    """Stored baselines by name: those below the working folder, then those beside this package's source."""
    roots = [root / FOLDER.name for root in RESULTS]
    return {path.name: path for root in roots if root.is_dir() for path in sorted(root.iterdir()) if path.is_dir()}


def open_run(name_or_path: str | Path) -> Run:
    """A run folder by path, or a stored baseline by name. Raises HarnessError: there is neither."""
    name, known = str(name_or_path), baselines()
    if Path(name).is_dir():
        return read_run(Path(name))
    if name in known:
        return read_run(known[name])
    if "/" in name:
        raise StoreError(f"there is no run folder at '{name}'")
    raise HarnessError(f"{unknown('baseline', name, known)}; or give the path of a run folder")


def save_baseline(run: Path | str, name: str, root: Path = FOLDER, replace: bool = False) -> Path:
    """Store a run as a baseline: one file per table, the manifest with its environment, no images.

    Returns the baseline's folder; one that holds the same already is left as it is. Raises HarnessError: an unsuitable
    name, one that is taken, a run without timings, or one larger than `MAX_BYTES`.

    Args:
        run: the run folder.
        name: of the baseline: letters, digits, dots, dashes.
        root: folder of the baselines.
        replace: whether a baseline of that name may be overwritten.
    """
    source, target = read_run(run), root / file_name("a baseline", name)
    if target.exists() and not replace:
        raise HarnessError(f"there is a baseline '{name}' at '{target}' already; give --replace to overwrite it")
    if source.table("timings").empty:
        raise HarnessError(f"'{run}' holds no timings, so nothing could be compared with it")
    partial = root / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with RunStore.create(partial, source.manifest | {"left_out": sorted(set(TABLES) - set(KEPT))}) as store:
            for table in KEPT:
                frame = source.table(table)
                rows: Any = frame.astype(object).where(frame.notna(), None).to_dict("records")  # null where missing
                store.append(table, rows)
        (partial / LOCK).unlink(missing_ok=True)
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        if size > MAX_BYTES:
            raise HarnessError(
                f"'{run}' makes a baseline of {size:,} bytes, allowed are {MAX_BYTES:,}; measure fewer cells"
            )
        if not target.is_dir() or _content(target) != _content(partial):
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _content(folder: Path) -> set[tuple[str, bytes]]:
    """Every file but for its name, which says when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {(path.parent.relative_to(folder).as_posix(), path.read_bytes()) for path in files}
