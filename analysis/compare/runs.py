"""Two runs, joined cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from analysis.compare.cells import CellFacts, cells_of
from analysis.compare.verdicts import ALPHA, VERDICTS, Comparison, Verdict, judge
from analysis.quality import INVALID, UNDECIDED, VALID
from analysis.statistics import BASELINE, Shift, median_interval, shift_of_rounds
from analysis.text import quantity, speedup
from harness.errors import HarnessError
from harness.runs.store import Run
from harness.runs.titles import title

TOLERANCE = 0.05
"""Changes of time, cost or deviation up to this share are none."""
KID_ERRORS = 3.0
"""Standard errors that KID must move by to have moved."""
DEVIATION_FLOOR = 1e-4
"""RMSE in image units below which deviations differ by rounding only."""


@dataclass(frozen=True, kw_only=True)
class CellVerdict(Verdict):
    """What became of one cell; `base` and `new` are speed-ups over sequential, NaN if unknown."""

    HEADINGS: ClassVar = ("verdict", "dataset", "decoder", "batch", "speed-up", "evidence")
    PLURAL: ClassVar = "cells"

    cell_key: str
    description: dict[str, Any]
    base: float = np.nan
    new: float = np.nan
    shift: Shift | None = None  # factor by which its time, relative to sequential's, grew; None if not compared

    def row(self) -> list[str]:
        cell = self.description
        speedups = " -> ".join(f"{value:.2f}x" for value in (self.base, self.new) if not np.isnan(value))
        name = title(cell["label"], cell["tau"])
        return [self.verdict, cell["dataset"], name, str(cell["batch_size"]), speedups, "; ".join(self.evidence)]


def compare_runs(base: Run, new: Run, tolerance: float = TOLERANCE) -> Comparison[CellVerdict]:
    """Compare a run cell by cell with a stored one, `base`; a `HarnessError` where they share no cell.

    Time, token evaluations, depth, cache bytes and deviation may grow by the share `tolerance`, 0 or more.
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
            description, speedup_then = before[key].description, before[key].speedup
            verdicts.append(CellVerdict(cell_key=key, description=description, verdict="gone", base=speedup_then))
        elif key not in before:
            verdicts.append(_unmatched(key, after[key], before))
        else:
            verdicts.append(_joined(key, before[key], after[key], same_machine, tolerance))
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


def _joined(key: str, base: CellFacts, new: CellFacts, same_machine: bool, tolerance: float) -> CellVerdict:
    wrong = list(_became_invalid(base, new))
    worse = list(_became_worse(base, new, tolerance))
    shift, timed, sentence = _time(base, new, same_machine, tolerance)
    costs, growth = _costs(base, new)
    verdict = timed
    if timed in ("same", "ambiguous", "not compared", "not measured") and growth > tolerance:
        verdict = "slower"  # what needs no clock is believed over noise
        costs = [f"deterministic cost grew by {growth:.0%}", *costs]
    elif timed in ("not compared", "not measured"):
        verdict = "faster" if growth < -tolerance else "same" if timed == "not compared" else timed
    undecided = [f"quality undecided: {new.why}"] if new.valid == UNDECIDED and base.valid != UNDECIDED else []
    # A cell that was invalid and is so still may be the same as before, but is never headlined as faster.
    invalid = bool(wrong) or (new.valid == INVALID and verdict not in ("same", "not measured"))
    return CellVerdict(
        cell_key=key,
        description=new.description,
        verdict="invalid" if invalid else verdict,
        regressed=bool(wrong or worse) or verdict == "slower",
        base=base.speedup,
        new=new.speedup,
        shift=shift,
        tested=timed == "not compared" or (shift is not None and not np.isnan(shift.low)),
        evidence=[*wrong, *worse, *([*costs, sentence] if verdict != timed else [sentence, *costs]), *undecided],
    )


def _time(base: CellFacts, new: CellFacts, same_machine: bool, tolerance: float) -> tuple[Shift | None, str, str]:
    if new.description["decoder"] == BASELINE:  # its ratio to itself is 1, so it is measured by forward passes
        if not same_machine and len(new.forward) and len(base.forward):
            return None, "not compared", "sequential's own time is not compared across machines"
        shift, unit = shift_of_rounds(new.forward, base.forward, 1 - ALPHA), "in forward passes"
    else:
        shift, unit = shift_of_rounds(1 / new.speedups, 1 / base.speedups, 1 - ALPHA), "relative to sequential"
    if np.isnan(shift.factor):
        return None, "not measured", "no paired rounds in both runs"
    few = np.isnan(shift.low)
    interval = "" if few else f" [{shift.low - 1:+.1%}, {shift.high - 1:+.1%}]"
    figures = f"time {unit} {shift.factor - 1:+.1%}{interval}, Mann-Whitney p = {shift.p_value:.2g}, "
    figures += "too few rounds for an interval" if few else f"Hodges-Lehmann interval at {1 - ALPHA:.0%}"
    verdict = judge(shift.factor, shift.p_value, tolerance)
    if verdict == "ambiguous":
        figures += ": beyond the tolerance, yet within the noise; measure more rounds"
    return shift, verdict, figures


def _costs(base: CellFacts, new: CellFacts) -> tuple[list[str], float]:
    """What differs of the deterministic costs, and the growth as a share: 0 where evaluations were traded for depth."""
    if not len(base.layers) or not len(new.layers):
        return [], 0.0
    changes, growths = [], []
    for name in ("iterations", "token_evaluations", "depth"):
        before, after = (cell.layers[name].tolist() for cell in (base, new))
        if before != after:
            changes.append(f"{name.replace('_', ' ')} by layer {_shown(before)} -> {_shown(after)}")
        if name != "iterations":
            growths.append(sum(after) / max(sum(before), 1) - 1)
    traded = min(growths) < 0 < max(growths)
    return changes, 0.0 if traded else max(growths, key=abs)


def _became_invalid(base: CellFacts, new: CellFacts) -> Iterator[str]:
    if new.errors and not base.errors:
        yield f"failed: {'; '.join(new.errors)}"
    if new.valid == INVALID and base.valid != INVALID:
        yield f"outside its matrix's quality tolerance: {new.why}"


def _became_worse(base: CellFacts, new: CellFacts, tolerance: float) -> Iterator[str]:
    if new.cache_bytes > base.cache_bytes * (1 + tolerance):
        yield f"cache {base.cache_bytes:,.0f} -> {new.cache_bytes:,.0f} bytes"
    before, after = base.quality, new.quality
    deviations = before.get("deviation_rmse", np.nan), after.get("deviation_rmse", np.nan)
    if deviations[1] > deviations[0] * (1 + tolerance) + DEVIATION_FLOOR:
        yield f"deviation from sequential on the same latents {deviations[0]:.4g} -> {deviations[1]:.4g}"
    comparable = all(before.get(name) == after.get(name) for name in ("fid_features", "num_samples", "num_reference"))
    if not comparable or not before.get("fid_features"):
        return
    moved = after["kid"] - before["kid"]
    error = float(np.hypot(before["kid_std"], after["kid_std"]))
    if moved > KID_ERRORS * error and after["fid"] > before["fid"] * (1 + tolerance):
        yield (
            f"FID {before['fid']:.4g} -> {after['fid']:.4g} and KID {before['kid']:.3g} -> {after['kid']:.3g}, "
            f"{moved / error if error else np.inf:.1f} standard errors"
        )


def _unmatched(key: str, cell: CellFacts, before: dict[str, CellFacts]) -> CellVerdict:
    if cell.errors:
        evidence = [f"failed: {'; '.join(cell.errors)}"]
    else:
        gained = speedup(*median_interval(cell.speedups))
        deviation = cell.quality.get("deviation_rmse", np.nan)
        evidence = [f"{gained} over sequential, deviation {quantity(deviation)}"]
        evidence = evidence if len(cell.speedups) else ["no paired rounds, so no speed-up"]
    same_group = [other for other in before.values() if other.description["group_id"] == cell.description["group_id"]]
    rivals = [other for other in same_group if other.valid in (VALID, None) and not np.isnan(other.speedup)]
    if rivals:
        best = max(rivals, key=lambda other: other.speedup)
        name = title(best.description["label"], best.description["tau"])
        evidence.append(f"the stored run's fastest valid here: {name} {best.speedup:.2f}x")
    return CellVerdict(
        cell_key=key,
        description=cell.description,
        verdict="invalid" if cell.valid == INVALID or cell.errors else "new",
        regressed=bool(cell.errors),
        new=cell.speedup,
        evidence=evidence,
    )


def _shown(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
