"""The folder of a training run: the state to continue from, and the loss curve, one row per step."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from harness.errors import CheckpointError, HarnessError
from harness.files import TORCH, not_as, replacing, unwritable
from harness.training.config import TrainingConfig

Row = dict[str, Any]


class TrainingFolder:
    """`checkpoint.pt`, a plain state dict, and `curve.csv`. Either is whole at any moment, whenever the run is killed.

    `measure` is the curve's column with what the target is judged by.
    """

    def __init__(self, path: Path, measure: str) -> None:
        self.path = path
        self.columns = ("step", "loss", "learning_rate", "grad_norm", "wall_s", measure, "cpu_s")
        self.checkpoint, self.curve = path / "checkpoint.pt", path / "curve.csv"

    def state(
        self, config: TrainingConfig, data: dict[str, str], resume: bool, device: torch.device
    ) -> dict[str, Any] | None:
        """The state to continue from, its tensors on `device`; None when the run starts from the beginning.

        Raises HarnessError: the folder holds a run and `resume` is false, or another run than that of `config`, or one
        that was trained on other data; CheckpointError: the state cannot be read.
        """
        if not resume and (self.checkpoint.exists() or self.curve.exists()):
            raise HarnessError(f"'{self.path}' holds a run already; --resume continues it, --out names another folder")
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            before = type(config).model_validate_json(state["config"])
            done, seen = int(state["step"]), {key: str(state.get(key, digest)) for key, digest in data.items()}
        except Exception as error:
            reason = not_as(self.checkpoint, TORCH)
            raise CheckpointError(f"'{self.checkpoint}' cannot be read as the state of a training: {reason}") from error
        if (key := before.difference(config, done)) is not None:
            then, now = (of.model_dump()[key] for of in (before, config))
            raise HarnessError(
                f"the run in '{self.path}' has {key} = {then!r}, not {now!r}; --out names another folder"
            )
        for key, digest in data.items():
            if seen[key] != digest:
                raise HarnessError(
                    f"the run in '{self.path}' was {'trained' if key == 'data' else 'judged'} on other data: SHA-256 "
                    f"{seen[key][:16]}, not {digest[:16]}; give the --data-root that it was started with, or another "
                    "folder with --out"
                )
        return state

    def save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # torch's own writer reports a full disk as an error of its own
        torch.save(state, buffer)
        with replacing(self.checkpoint) as partial:
            partial.write_bytes(buffer.getbuffer())

    def rows(self) -> list[dict[str, str]]:
        """The curve so far, a row per step, as text; empty before the first."""
        if not self.curve.exists():
            return []
        try:
            with self.curve.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise CheckpointError(f"'{self.curve}' cannot be read as the curve of a training: {error}") from error

    @contextmanager
    def writer(self, start: int) -> Iterator[Callable[[Row], None]]:
        """A function that appends a row to the curve. Rows behind step `start`, where the run goes on, are dropped."""
        kept = self.rows()[:start]
        if [row.get("step") for row in kept] != [str(step) for step in range(1, start + 1)]:
            raise CheckpointError(
                f"'{self.curve}' does not hold the {start} steps of the state beside it, which cannot be continued "
                "without them; --out names another folder"
            )
        with replacing(self.curve) as partial, partial.open("w", newline="") as file:
            table = csv.DictWriter(file, self.columns)
            table.writeheader()
            table.writerows(kept)
        file = self.curve.open("a", newline="", buffering=1)
        table = csv.DictWriter(file, self.columns)

        def append(row: Row) -> None:
            try:
                table.writerow(row)
            except OSError as error:
                raise unwritable(self.curve, error) from error

        try:
            yield append
        finally:
            with suppress(OSError):  # of a full disk, told already; every row was flushed when it was written
                file.close()
