"""Where what was fitted to a checkpoint or tuned for it lies: in the user's cache, beside the checkpoint, or shipped."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from harness.files import cache_folder
from harness.flows.checkpoints import ASSETS, digest
from harness.flows.protocols import CausalFlow

T = TypeVar("T")


def folders(source: Path) -> tuple[Path, Path, Path]:
    """Where such files of a checkpoint may lie, the first to be looked at first; the last are shipped."""
    return cache_folder() / "calibration", source.parent / "calibration", ASSETS / "calibration"


def file_name(source: Path, suffix: str) -> str:
    """Of such a file: by the checkpoint's content, whatever the checkpoint is called."""
    return checkpoint_digest(source)[:16] + suffix


def stored(source: Path, suffix: str) -> Path | None:
    """Such a file, or None where there is none."""
    paths = (folder / file_name(source, suffix) for folder in folders(source))
    return next((path for path in paths if path.is_file()), None)


def storage(source: Path, suffix: str) -> Path:
    """Where such a file is written: beside the checkpoint, or where it was found first.

    In the user's cache when that has one, when the checkpoint is shipped, or when its folder cannot be written to.
    """
    cached, beside, _ = (folder / file_name(source, suffix) for folder in folders(source))
    shipped = source.parent.resolve() == ASSETS.resolve()
    return cached if shipped or cached.is_file() or not os.access(source.parent, os.W_OK) else beside


def read_once(flow: CausalFlow, path: Path, read: Callable[[Path], T]) -> T:
    """What a file holds, kept with the flow until the file changes."""
    version = (path, path.stat().st_mtime_ns if path.is_file() else 0)
    if version not in flow.fits:
        flow.fits[version] = read(path)
    return flow.fits[version]


def checkpoint_digest(source: Path) -> str:
    """SHA-256 of a checkpoint; computed once for a file that does not change."""
    status = source.stat()
    return _digest(source, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=32)
def _digest(source: Path, modified_ns: int, size: int) -> str:
    return digest(source)


def called(flow: CausalFlow) -> str:
    """A flow as a command takes it: a shipped one by name, another by its file."""
    if flow.source is None:
        return "FLOW"
    return flow.source.stem if flow.source.parent.resolve() == ASSETS.resolve() else str(flow.source)
