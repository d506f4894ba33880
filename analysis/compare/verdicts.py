"""The verdict on one cell, and the evidence for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.cells import BASELINE, CellFacts
from analysis.statistics import Shift, median_interval, shift_of_rounds

ALPHA = 0.02
"""Level of the Mann-Whitney test below which a change of time is more than noise.

Simulated at 20 rounds a run and a tolerance of 5 %, 1500 tries each: a slowdown of 10 % is found, and an unchanged cell
called slower, in this share of tries, for lognormal noise of every measurement and 2 % outliers of 1.5 times:
noise 2 %: 1.000, 0.000; 3 %: 1.000, 0.001; 4 %: 0.981, 0.004; 5 %: 0.883, 0.008.
"""
KID_ERRORS = 3.0
"""Standard errors that KID must move by to have moved."""
DEVIATION_FLOOR = 1e-4
"""RMSE in image units below which deviations differ by rounding only."""

VERDICTS = ("invalid", "slower", "ambiguous", "gone", "new", "faster", "same")
"""Every verdict, the most worrying first."""


@dataclass(frozen=True)
class Verdict:
    """What became of one cell.

    Args:
        description: dataset, checkpoint, label, tau, batch_size and the like.
        verdict: one of `VERDICTS`.
        regressed: whether the comparison fails because of this cell.
        base: speed-up over sequential in the stored run, NaN if unknown.
        new: the same in the new run.
        shift: factor by which its time, relative to sequential's, grew; None where it was not compared.
        evidence: sentences, the decisive one first.
    """

    cell_key: str
    description: dict[str, Any]
    verdict: str
    regressed: bool
    base: float = np.nan
    new: float = np.nan
    shift: Shift | None = None
    evidence: list[str] = field(default_factory=list)


def joined(key: str, base: CellFacts, new: CellFacts, same_machine: bool, tolerance: float) -> Verdict:
    """The verdict on a cell that both runs hold."""
    wrong = list(_became_invalid(base, new))
    worse = list(_became_worse(base, new, tolerance))
    shift, timed, sentence = _time(base, new, same_machine, tolerance)
    costs, growth = _costs(base, new)
    verdict = timed
    if timed in ("same", "ambiguous", "not compared") and growth > tolerance:
        verdict = "slower"  # what needs no clock is believed over noise
        costs = [f"deterministic cost grew by {growth:.0%}", *costs]
    elif timed == "not compared":
        verdict = "faster" if growth < -tolerance else "same"
    # A cell that was invalid and is so still may be the same as before, but is never headlined as faster.
    invalid = bool(wrong) or (new.valid is False and verdict != "same")
    return Verdict(
        cell_key=key,
        description=new.description,
        verdict="invalid" if invalid else verdict,
        regressed=bool(wrong or worse) or verdict == "slower",
        base=base.speedup,
        new=new.speedup,
        shift=shift,
        evidence=[*wrong, *worse, *([*costs, sentence] if verdict != timed else [sentence, *costs])],
    )


def _time(base: CellFacts, new: CellFacts, same_machine: bool, tolerance: float) -> tuple[Shift | None, str, str]:
    """The factor by which the cell's time grew, what that means, and the sentence that says so."""
    if new.description["decoder"] == BASELINE:  # its ratio to itself is 1, so it is measured by forward passes
        if not same_machine:
            return None, "not compared", "sequential's own time is not compared across machines"
        shift, unit = shift_of_rounds(new.forward, base.forward, 1 - ALPHA), "in forward passes"
    else:
        shift, unit = shift_of_rounds(1 / new.speedups, 1 / base.speedups, 1 - ALPHA), "relative to sequential"
    if np.isnan(shift.factor):
        return None, "not compared", "no paired rounds in both runs"
    figures = (
        f"time {unit} {shift.factor - 1:+.1%} [{shift.low - 1:+.1%}, {shift.high - 1:+.1%}], "
        f"Mann-Whitney p = {shift.p_value:.2g}, Hodges-Lehmann interval at {1 - ALPHA:.0%}"
    )
    if max(shift.factor, 1 / shift.factor) <= 1 + tolerance:
        return shift, "same", figures
    if not shift.p_value < ALPHA:
        return shift, "ambiguous", f"{figures}: beyond the tolerance, yet within the noise; measure more rounds"
    return shift, "slower" if shift.factor > 1 else "faster", figures


def _costs(base: CellFacts, new: CellFacts) -> tuple[list[str], float]:
    """Deterministic costs that differ, and their growth as a share.

    Where token evaluations fall while depth grows, or the other way round, one was traded for the other: only a clock
    can tell what that is worth, and the growth is 0.
    """
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
    """Why a cell that was right before is so no longer."""
    if new.errors and not base.errors:
        yield f"failed: {'; '.join(new.errors)}"
    if new.valid is False and base.valid is not False:
        figures = (f"{name} {new.quality.get(name)}" for name in ("deviation_rmse", "fid", "nonfinite_samples"))
        yield f"outside its matrix's quality tolerance: {', '.join(figures)}"


def _became_worse(base: CellFacts, new: CellFacts, tolerance: float) -> Iterator[str]:
    """A cache that grew, and quality that fell beyond its own uncertainty."""
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


def unmatched(key: str, cell: CellFacts, before: dict[str, CellFacts]) -> Verdict:
    """A cell that only the new run holds, set beside the stored run's fastest valid cell of the same group."""
    if cell.errors:
        evidence = [f"failed: {'; '.join(cell.errors)}"]
    else:
        median = median_interval(cell.speedups)
        evidence = [
            f"{median.value:.2f}x [{median.low:.2f}, {median.high:.2f}] over sequential (bootstrap), "
            f"deviation {cell.quality.get('deviation_rmse', np.nan):.3g}"
        ]
    same_group = [other for other in before.values() if other.description["group_id"] == cell.description["group_id"]]
    rivals = [other for other in same_group if other.valid is not False and not np.isnan(other.speedup)]
    if rivals:
        best = max(rivals, key=lambda other: other.speedup)
        evidence.append(f"the stored run's fastest valid here: {title(best.description)} {best.speedup:.2f}x")
    invalid = cell.valid is False or bool(cell.errors)
    return Verdict(
        key, cell.description, "invalid" if invalid else "new", bool(cell.errors), new=cell.speedup, evidence=evidence
    )


def title(description: dict[str, Any]) -> str:
    """A decoder with its options and tau, as tables call it."""
    tau = description["tau"]
    return str(description["label"]) if pd.isna(tau) else f"{description['label']} tau {tau:g}"


def _shown(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
