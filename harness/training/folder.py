"""The folder of a training run: the state to continue from, and the loss curve, one row per step."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness.errors import CheckpointError, HarnessError
from harness.training.course import Course

COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "wall_s")
BITS = "held_out_bits_per_dim"

Row = dict[str, Any]


class TrainingFolder:
    """`checkpoint.pt`, a plain state dict, and `curve.csv`. Either is whole at any moment, whenever the run is killed.

    Args:
        path: created when the run starts.
        measures: columns of the curve beside `COLUMNS`.
    """

    def __init__(self, path: Path, measures: tuple[str, ...] = (BITS,)) -> None:
        self.path, self.columns = path, (*COLUMNS, *measures)
        self.checkpoint, self.curve = path / "checkpoint.pt", path / "curve.csv"

    def state(self, config: Course, resume: bool, device: torch.device) -> dict[str, Any] | None:
        """The state to continue from, or None when the run starts from the beginning.

        Raises:
            HarnessError: the folder holds a run and `resume` is false, or another run than that of `config`.
            CheckpointError: the state cannot be read.
        """
        if not resume and (self.checkpoint.exists() or self.curve.exists()):
            raise HarnessError(f"'{self.path}' holds a run already; --resume continues it, --out names another folder")
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            before = type(config).model_validate_json(state["config"])
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"'{self.checkpoint}' cannot be read as the state of a training: {reason}") from error
        if (key := before.difference(config, int(state["step"]))) is not None:
            then, now = getattr(before, key), getattr(config, key)
            raise HarnessError(
                f"the run in '{self.path}' has {key} = {then!r}, not {now!r}; --out names another folder"
            )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state to continue from."""
        with replacing(self.checkpoint) as partial:
            torch.save(state, partial)

    def rows(self) -> list[dict[str, str]]:
        """The curve so far, a row per step, as text; empty before the first."""
        if not self.curve.exists():
            return []
        with self.curve.open(newline="") as file:
            return list(csv.DictReader(file))

    @contextmanager
    def writer(self, start: int) -> Iterator[Callable[[Row], Any]]:
        """A function that appends a row to the curve. Rows behind step `start`, where the run goes on, are dropped."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            kept = self.rows()[:start]
            with replacing(self.curve) as partial, partial.open("w", newline="") as file:
                table = csv.DictWriter(file, self.columns)
                table.writeheader()
                table.writerows(kept)
            with self.curve.open("a", newline="", buffering=1) as file:
                yield csv.DictWriter(file, self.columns).writerow
        except OSError as error:
            raise HarnessError(f"the folder '{self.path}' cannot be written: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of `path` at once and only when all went well."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
