"""Two runs, joined cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.compare.cells import CellFacts, cells_of
from analysis.compare.verdicts import VERDICTS, Verdict, joined, unmatched
from harness.errors import HarnessError
from harness.runs.store import Run

TOLERANCE = 0.05
"""Changes of time, cost or deviation up to this share are none."""


@dataclass(frozen=True)
class Comparison:
    """Every cell's verdict, and what the comparison rests on.

    Args:
        cells: the most worrying first.
        same_machine: whether the environments' fingerprints match.
        notes: what a reader should know about the whole.
    """

    cells: list[Verdict]
    same_machine: bool
    tolerance: float
    notes: list[str] = field(default_factory=list)

    @property
    def regressed(self) -> bool:
        """Whether any cell regressed."""
        return any(cell.regressed for cell in self.cells)


def compare_runs(base: Run, new: Run, tolerance: float = TOLERANCE) -> Comparison:
    """Compare two runs cell by cell.

    Args:
        base: the stored run.
        new: the run under test.
        tolerance: share by which time, token evaluations, depth, cache bytes or deviation may grow.

    Raises:
        HarnessError: a negative tolerance, or runs that share no cell and no group to compare new cells in.
    """
    if not tolerance >= 0:
        raise HarnessError(f"tolerance must be 0 or more, not {tolerance}")
    before, after = cells_of(base), cells_of(new)
    if not set(before) & set(after):
        raise HarnessError(f"'{base.path}' and '{new.path}' have no cell in common, so nothing can be compared")
    fingerprints = [run.manifest.get("environment", {}).get("fingerprint") for run in (base, new)]
    same_machine = fingerprints[0] is not None and fingerprints[0] == fingerprints[1]
    verdicts = []
    for key in before.keys() | after.keys():
        if key not in after:
            verdicts.append(Verdict(key, before[key].description, "gone", False, base=before[key].speedup))
        elif key not in before:
            verdicts.append(unmatched(key, after[key], before))
        else:
            verdicts.append(joined(key, before[key], after[key], same_machine, tolerance))
    verdicts.sort(key=lambda cell: (VERDICTS.index(cell.verdict), *_place(cell.description)))
    return Comparison(verdicts, same_machine, tolerance, list(_notes(before, after, same_machine)))


def _notes(before: dict[str, CellFacts], after: dict[str, CellFacts], same_machine: bool) -> Iterator[str]:
    if not same_machine:
        yield "the runs come from different machines or settings: times are compared as ratios to sequential only"
    versions = [{str(cell.description["code_version"])[:12] for cell in cells.values()} for cells in (before, after)]
    if versions[0] != versions[1]:
        yield f"code {', '.join(sorted(versions[0]))} -> {', '.join(sorted(versions[1]))}"


def _place(description: dict[str, Any]) -> tuple[Any, ...]:
    tau = description["tau"]
    return tuple(description[name] for name in ("dataset", "batch_size", "label")) + (-1.0 if pd.isna(tau) else tau,)
