"""A comparison as text for a terminal, Markdown for a pull request, or JSON for a program."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from analysis.compare.runs import TOLERANCE, CellVerdict, compare_runs
from analysis.compare.verdicts import VERDICTS, Comparison, Verdict
from analysis.text import markdown_table, print_table, room
from harness.runs.store import Run


def text(comparison: Comparison, shown: Sequence[Verdict]) -> str:
    """A table for a terminal of the verdicts that are to be shown, then the notes and the sum."""
    from rich.console import Console

    console = Console(width=room(160), color_system=None)
    with console.capture() as capture:
        if shown:
            *_, evidence = headings = shown[0].HEADINGS
            rows = [dict(zip(headings, verdict.row(), strict=True)) for verdict in shown]
            print_table(console, rows, folded=evidence, box=None)
        for line in _closing(comparison):
            console.print(line, highlight=False, soft_wrap=True)
    return capture.get().rstrip()


def markdown(comparison: Comparison, shown: Sequence[Verdict]) -> str:
    """A Markdown table, then the notes and the sum."""
    table = [markdown_table([shown[0].HEADINGS, *(verdict.row() for verdict in shown)]), ""] if shown else []
    return "\n".join([*table, *(f"{line}  " for line in _closing(comparison))]).rstrip()


def as_json(comparison: Comparison, shown: Sequence[CellVerdict]) -> str:
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
            "time_factor": cell.shift and {name: _plain(value) for name, value in cell.shift._asdict().items()},
            "evidence": cell.evidence,
        }
        for cell in shown
    ]
    whole = {
        "regressed": comparison.regressed,
        "tolerance": comparison.tolerance,
        "same_machine": comparison.same_machine,
        "counts": dict(_counts(comparison)),
        "untested": comparison.untested,
        "notes": comparison.notes,
        "cells": cells,
    }
    return json.dumps(whole, indent=2, allow_nan=False)


def print_comparison(
    base: Run,
    new: Run,
    form: str = "text",
    only_regressed: bool = False,
    tolerance: float = TOLERANCE,
    require_evidence: bool = False,
) -> int:
    """Compare two runs and print the result; the exit code, 1 for a regression, or for a cell without evidence."""
    comparison = compare_runs(base, new, tolerance)
    print(FORMATS[form](comparison, [cell for cell in comparison.verdicts if cell.regressed or not only_regressed]))
    return int(comparison.regressed or (require_evidence and comparison.untested > 0))


FORMATS: dict[str, Callable[[Comparison, Sequence[Any]], str]] = {"text": text, "markdown": markdown, "json": as_json}
"""Renderings by name: (comparison, verdicts to be shown) -> text."""


def _closing(comparison: Comparison) -> list[str]:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(comparison))
    regressed = sum(verdict.regressed for verdict in comparison.verdicts)
    end = f"{regressed} regressed" if regressed else "no regression"
    total = f"{len(comparison.verdicts)} {comparison.verdicts[0].PLURAL}: {counts}; {end}"
    notes = [f"note: {note}" for note in comparison.notes]
    if comparison.untested:
        notes.append(f"note: no evidence of time for {comparison.untested} of them: gone, or too few paired rounds")
    return [*notes, f"{total} beyond a tolerance of {comparison.tolerance:.0%}"]


def _counts(comparison: Comparison) -> list[tuple[str, int]]:
    found = Counter(verdict.verdict for verdict in comparison.verdicts)
    return [(verdict, found[verdict]) for verdict in VERDICTS if found[verdict]]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
