"""What `import harness` offers of the commands that measure: they measure, and say what it comes to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from analysis.load import Runs, load
from analysis.recommendation import Recommendation
from analysis.summary import print_summary, recommendations, summarise
from analysis.text import as_text, print_table, room
from harness.errors import HarnessError
from harness.flows.checkpoints import checkpoint_path
from harness.flows.protocols import CausalFlow
from harness.measure.matrix import Matrix
from harness.measure.recommend import CANDIDATES, SECONDS, free, measure_choices
from harness.measure.run_matrix import run_matrix
from harness.measure.sources import matrix_of
from harness.options import parse_decoder, several
from harness.progress import reporter
from harness.runs.store import Run
from harness.runs.tables import FLOW, IDENTITY, TABLES
from harness.runs.titles import parsed

Budget = float | Literal["sejd"] | None

SHORT = 12
"""Rows of a probe's table up to which it is printed."""
WIDE = 170
"""Columns of a table that no terminal shows."""


def run(
    matrix: str | Path,
    out: Path | str | None = None,
    *,
    profile: str | None = None,
    decoders: Sequence[str] = (),
    dataset: str | None = None,
    weights: str | None = None,
    resume: bool = False,
    device: str | None = None,
    threads: int | None = None,
    data_root: str | None = None,
    inception_weights: str | None = None,
) -> Runs:
    """Measure a matrix, by name or ``.toml`` file, or a checkpoint by its path, as ``harness run`` does.

    Returns the run, which a notebook shows; its `summary()` is a frame, one row per cell. Raises HarnessError: anything
    wrong with the matrix, its checkpoints or the folder, before anything is measured.

    Args:
        out: the run folder; by default ``runs/NAME``.
        profile: a variant of the matrix, such as ``"fast"``.
        decoders: further ones, each as ``"NAME option=value ..."``.
        dataset: real images that a checkpoint was trained on, for FID; by default what it says of itself.
        weights: which ones of a checkpoint, see `load_flow`.
        resume: finish what is there.
    """
    return load(
        measured(
            str(matrix), out, profile, decoders, dataset, weights, device, resume=resume, threads=threads,
            data_root=data_root, inception_weights=inception_weights,
        ).path
    )  # fmt: skip


def measured(
    matrix: str, out: Path | str | None, profile: str | None, decoders: Sequence[str], dataset: str | None,
    weights: str | None, device: str | None, **options: Any,
) -> Run:  # fmt: skip
    """The finished run of a matrix or checkpoint; `options` are further ones of `run_matrix`."""
    parsed = parsed_matrix(matrix, profile, decoders, dataset, weights, device)
    return run_matrix(parsed, Path(out or Path("runs") / parsed.name), reporter(), **options)


def parsed_matrix(
    matrix: str, profile: str | None, decoders: Sequence[str], dataset: str | None, weights: str | None,
    device: str | None,
) -> Matrix:  # fmt: skip
    """A matrix, or the one of a checkpoint, as the command line changes it."""
    overrides = {"decoders": [parse_decoder(spec) for spec in decoders]} | ({"device": device} if device else {})
    return matrix_of(matrix, profile, overrides, dataset, weights)


@dataclass(frozen=True)
class Recommended:
    """Which decoder to use for a checkpoint, one choice for each batch size, and the run that says so."""

    choices: list[Recommendation]
    run: Run

    def __repr__(self) -> str:
        return "\n".join(map(str, self.choices))

    def _repr_html_(self) -> str:
        return load(self.run.path)._repr_html_()

    def summary(self) -> Any:
        """Every decoder that was measured, as a frame, one row per cell."""
        return summarise(self.run)


def recommend(
    checkpoint: str | Path | CausalFlow,
    *,
    dataset: str | None = None,
    weights: str | None = None,
    batches: int | Sequence[int] = (16,),
    budgets: Budget | Sequence[Budget] = ("sejd",),
    seconds: float = SECONDS,
    out: Path | str | None = None,
    resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
    data_root: str | None = None,
    inception_weights: str | None = None,
    candidates: Sequence[dict[str, Any]] = CANDIDATES,
    name: str = "recommend",
) -> Recommended:
    """Which decoder to use for a checkpoint: it is fitted, tuned and measured, as ``harness recommend`` does.

    What was fitted is kept, and used by ``"auto"`` from then on. Raises HarnessError: anything that cannot be done as
    asked, before anything is fitted.

    Args:
        checkpoint: a flow's name, its file, or a flow that was loaded from one.
        dataset: real images that it was trained on, for FID; by default what it says of itself.
        weights: which ones of the checkpoint, see `load_flow`.
        batches: samples decoded together.
        budgets: deviations allowed, RMSE to the exact sample; "sejd" or None for that of SeJD at tau 0.5.
        seconds: that measuring may take, about; fitting comes before.
        out: the run folder; by default ``runs/recommend-NAME``, or the next that is free.
        resume: finish what is there.
    """
    allowed = [None if budget == "sejd" else budget for budget in several(budgets)]
    if wrong := [budget for budget in allowed if not isinstance(budget, int | float | None)]:
        raise HarnessError(f"a budget is a deviation, such as 0.05, or 'sejd', not {wrong[0]!r}")
    if isinstance(checkpoint, CausalFlow):
        if checkpoint.source is None:
            raise HarnessError(
                "measuring reads the checkpoint from its file, in processes of its own, and this flow has none: save "
                "it (safetensors.torch.save_file(module.state_dict(), path)) and give the path"
            )
        checkpoint = checkpoint.source
    folder = Path(out or Path("runs") / f"{name}-{checkpoint_path(checkpoint).stem}")
    measured = measure_choices(
        str(checkpoint), folder if out or resume else free(folder), reporter(), batches=list(several(batches)),
        budgets=allowed, candidates=candidates, dataset=dataset, weights=weights, seconds=seconds, device=device,
        resume=resume, threads=threads, data_root=data_root, inception_weights=inception_weights,
    )  # fmt: skip
    return Recommended(recommendations(measured), measured)


def print_choice(run: Run) -> None:
    """Print what was measured, the sentences it comes to, and the Python lines that do it."""
    print(f"{run.path}; `harness report {run.path}` draws it")
    print_run(run)
    for found in recommendations(run):
        print(f"\nIn Python, for {found.where}:\n")
        print("\n".join(f"    {line}" for line in found.python.splitlines()))


def print_run(run: Run, as_json: bool = False) -> None:
    """Print what a run found, as tables or as JSON."""
    if not run.matrix:  # of a probe, whose tables are its own
        tables = {name: run.table(name) for name in run.tables}
        held = {name: len(rows) for name, rows in tables.items() if len(rows)}
        told = [f"{run.path}: a probe's run", *(f"  {name}: {count} rows" for name, count in held.items())]
        print(json.dumps({"run": str(run.path), "rows": held}, indent=2) if as_json else "\n".join(told))
        for name in () if as_json else sorted({*held} - {*TABLES}):
            if held[name] <= SHORT:
                text = as_text(tables[name].drop(columns=[*IDENTITY, *FLOW], errors="ignore"))
                lines = [{str(column): str(cell) for column, cell in row.items()} for row in text.to_dict("records")]
                print_table(Console(width=room(WIDE)), lines, title=name)
        return
    if as_json:
        cells = json.loads(summarise(run).to_json(orient="records", double_precision=15))
        for cell in cells:
            cell |= {"options": parsed(cell["options"]), "guidance": parsed(cell["guidance"]) or None}
        choices = [vars(found) for found in recommendations(run)]
        print(json.dumps({"run": str(run.path), "recommendations": choices, "cells": cells}, indent=2, allow_nan=False))
        return
    print_summary(run, Console(width=room(WIDE)))
