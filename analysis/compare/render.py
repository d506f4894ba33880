"""A comparison as text for a terminal, Markdown for a pull request, or JSON for a program."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from analysis.compare.runs import TOLERANCE, Comparison, compare_runs
from analysis.compare.verdicts import VERDICTS, Verdict, title
from harness.runs.store import Run

HEADINGS = ("verdict", "dataset", "decoder", "batch", "speed-up", "evidence")


def text(comparison: Comparison, only_regressed: bool = False) -> str:
    """A table for a terminal, then the notes and the sum."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADINGS, box=None, pad_edge=False)
    for cell in _chosen(comparison, only_regressed):
        table.add_row(*_row(cell))
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        if table.rows:
            console.print(table)
        for line in _closing(comparison):
            console.print(line, highlight=False, soft_wrap=True)
    return capture.get().rstrip()


def markdown(comparison: Comparison, only_regressed: bool = False) -> str:
    """A Markdown table, then the notes and the sum."""
    rows = [_row(cell) for cell in _chosen(comparison, only_regressed)]
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows] if rows else []
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*table, *([""] if table else []), *(f"{line}  " for line in _closing(comparison))]).rstrip()


def as_json(comparison: Comparison, only_regressed: bool = False) -> str:
    """Every figure; what is unknown is null."""
    names = ("dataset", "checkpoint", "decoder", "label", "tau", "options", "guidance", "batch_size", "seed")
    cells = [
        {
            "cell_key": cell.cell_key,
            **{name: _plain(cell.description[name]) for name in names},
            "verdict": cell.verdict,
            "regressed": cell.regressed,
            "base_speedup": _plain(cell.base),
            "new_speedup": _plain(cell.new),
            "time_factor": None
            if cell.shift is None
            else {name: _plain(value) for name, value in cell.shift._asdict().items()},
            "evidence": cell.evidence,
        }
        for cell in _chosen(comparison, only_regressed)
    ]
    return json.dumps(
        {
            "regressed": comparison.regressed,
            "tolerance": comparison.tolerance,
            "same_machine": comparison.same_machine,
            "counts": dict(_counts(comparison)),
            "notes": comparison.notes,
            "cells": cells,
        },
        indent=2,
        allow_nan=False,
    )


def print_comparison(
    base: Run, new: Run, form: str = "text", only_regressed: bool = False, tolerance: float = TOLERANCE
) -> int:
    """Compare two runs and print the result; the exit code, 1 for a regression."""
    comparison = compare_runs(base, new, tolerance)
    print(FORMATS[form](comparison, only_regressed))
    return int(comparison.regressed)


FORMATS: dict[str, Callable[[Comparison, bool], str]] = {"text": text, "markdown": markdown, "json": as_json}
"""Renderings by name: (comparison, only regressed cells) -> text."""


def _chosen(comparison: Comparison, only_regressed: bool) -> list[Verdict]:
    return [cell for cell in comparison.cells if cell.regressed or not only_regressed]


def _row(cell: Verdict) -> list[str]:
    speedups = " -> ".join(f"{value:.2f}x" for value in (cell.base, cell.new) if not math.isnan(value))
    return [
        cell.verdict,
        str(cell.description["dataset"]),
        title(cell.description),
        str(cell.description["batch_size"]),
        speedups,
        "; ".join(cell.evidence),
    ]


def _closing(comparison: Comparison) -> list[str]:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(comparison))
    regressed = sum(cell.regressed for cell in comparison.cells)
    end = f"{regressed} regressed" if regressed else "no regression"
    return [
        *(f"note: {note}" for note in comparison.notes),
        f"{len(comparison.cells)} cells: {counts}; {end} beyond a tolerance of {comparison.tolerance:.0%}",
    ]


def _counts(comparison: Comparison) -> list[tuple[str, int]]:
    found = Counter(cell.verdict for cell in comparison.cells)
    return [(verdict, found[verdict]) for verdict in VERDICTS if found[verdict]]


def _plain(value: Any) -> Any:
    """A number, string or None that JSON can hold."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
