"""Two runs, joined cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from analysis.compare.cells import CellFacts, cells_of
from analysis.compare.verdicts import ALPHA, UNTIMED, VERDICTS, Comparison, Verdict, judge
from analysis.quality import INVALID, UNDECIDED, VALID
from analysis.statistics import BASELINE, Shift, detectable, median_interval, relative_times, shift_of_rounds
from analysis.text import listing, quantity, speedup
from harness.errors import HarnessError
from harness.runs.environment import decisive
from harness.runs.store import Run
from harness.runs.titles import flow_title, title

TOLERANCE = 0.05
"""Changes of time, cost or deviation up to this share are none."""
KID_ERRORS = 3.0
"""Standard errors that KID must move by to have moved."""
DEVIATION_FLOOR = 1e-4
"""RMSE in image units below which deviations differ by rounding only."""


@dataclass(frozen=True, kw_only=True)
class CellVerdict(Verdict):
    """What became of one cell; `base` and `new` are speed-ups over sequential, NaN if unknown."""

    HEADINGS: ClassVar = ("verdict", "flow", "decoder", "batch", "speed-up", "finds", "evidence")
    PLURAL: ClassVar = "cells"

    cell_key: str
    description: dict[str, Any]
    base: float = np.nan
    new: float = np.nan
    shift: Shift | None = None  # factor by which its time grew, see `METHOD`; None if not compared
    finds: float = np.nan  # the least slow-down, as a share, that would have been found in 19 of 20 such comparisons
    state: str = ""  # what is to be said of its validity
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)  # base's and new's, of what needs no clock

    def row(self) -> list[str]:
        cell = self.description
        speedups = " -> ".join(f"{value:.2f}x" for value in (self.base, self.new) if not np.isnan(value))
        named = [flow_title(cell), title(cell["label"], cell["tau"]), str(cell["batch_size"])]
        verdict = "; ".join(filter(None, [self.verdict, self.state])) + " !" * self.regressed
        finds = "" if np.isnan(self.finds) else f"{self.finds:+.1%}"
        return [verdict, *named, speedups, finds, "; ".join(self.evidence)]


def compare_runs(base: Run, new: Run, tolerance: float = TOLERANCE) -> Comparison[CellVerdict]:
    """Compare a run cell by cell with a stored one, `base`; a `HarnessError` where they share no cell.

    Time, token evaluations, depth, cache bytes and deviation may grow by the share `tolerance`, 0 or more.
    """
    if not tolerance >= 0:
        raise HarnessError(f"tolerance must be 0 or more, not {tolerance}")
    before, after = cells_of(base), cells_of(new)
    if not set(before) & set(after):
        raise HarnessError(f"'{base.path}' and '{new.path}' have no cell in common, so nothing can be compared")
    differences = _differences(base, new)
    verdicts = []
    for key in before.keys() | after.keys():
        if key not in after:
            description, speedup_then = before[key].description, before[key].speedup
            verdicts.append(CellVerdict(cell_key=key, description=description, verdict="gone", base=speedup_then))
        elif key not in before:
            verdicts.append(_unmatched(key, after[key], before))
        else:
            verdicts.append(_joined(key, before[key], after[key], not differences, tolerance))
    verdicts.sort(key=lambda cell: (VERDICTS.index(cell.verdict), *_place(cell.description)))
    notes = list(_notes(before, after, differences, any(cell.shift for cell in verdicts)))
    return Comparison(verdicts, not differences, tolerance, notes, differences)


def _differences(base: Run, new: Run) -> list[str]:
    """In what the two environments differ that times depend on."""
    facts = [run.environment for run in (base, new)]
    prints = [one.get("fingerprint") for one in facts]
    if prints[0] is not None and prints[0] == prints[1]:
        return []
    before, after = map(decisive, facts)
    changed = [name for name in before if before[name] != after[name]]
    found = [f"{_WORDS.get(name, name)} {before[name]} -> {after[name]}" for name in changed]
    if None in prints:
        found.append("one of the runs has no single environment, or does not tell it")
    return found or ["something of the environment that is not stored"]


_WORDS = {"machine": "architecture", "cpu": "processor", "logical_cores": "processors", "gpu": "GPU", "cuda": "CUDA"}


def _notes(
    before: dict[str, CellFacts], after: dict[str, CellFacts], differences: list[str], timed: bool
) -> Iterator[str]:
    if differences:
        yield f"times are not comparable ({', '.join(differences)}); only costs that need no clock are judged"
    noisy = {
        f"{side}, {flow_title(cell.description)}, batch {cell.description['batch_size']}: {cell.told}"
        for side, cells in (("base", before), ("new", after))
        for cell in cells.values()
        if cell.told and not differences
    }
    yield from sorted(noisy)
    if timed:
        yield METHOD
    versions = [{str(cell.description["code_version"])[:12] for cell in cells.values()} for cells in (before, after)]
    if versions[0] != versions[1]:
        yield f"code {', '.join(sorted(versions[0]))} -> {', '.join(sorted(versions[1]))}"


def _place(description: dict[str, Any]) -> tuple[Any, ...]:
    tau = description["tau"]
    return tuple(description[name] for name in ("dataset", "batch_size", "label")) + (-1.0 if pd.isna(tau) else tau,)


def _joined(key: str, base: CellFacts, new: CellFacts, same_machine: bool, tolerance: float) -> CellVerdict:
    wrong, worse = list(_became_invalid(base, new)), dict(_became_worse(base, new, tolerance))
    shift, timed, sentence = _time(base, new, same_machine, tolerance)
    costs, growth = _costs(base, new)
    verdict = timed
    if timed not in ("slower", "faster") and growth > tolerance:
        verdict = "slower"  # what needs no clock is believed over noise
        costs = [f"deterministic cost grew by {growth:.0%}", *costs]
    elif timed in UNTIMED and growth < -tolerance:
        verdict = "faster"
    by = (["failure" if new.errors else "validity"] if wrong else []) + list(worse)
    by += ["cost" if verdict != timed else "time"] if verdict == "slower" else []
    undecided = [f"quality undecided: {new.why}"] if new.valid == UNDECIDED and base.valid != UNDECIDED else []
    costs = [*costs, sentence] if verdict != timed else [sentence, *costs]
    return CellVerdict(
        cell_key=key,
        description=new.description,
        verdict="failed" if new.errors else verdict,
        regressed_by=by,
        base=base.speedup,
        new=new.speedup,
        shift=shift,
        finds=np.nan if shift is None else detectable(shift, tolerance, 1 - ALPHA),
        state=_state(base, new),
        figures=_figures(base, new),
        tested=shift is not None and not np.isnan(shift.low),
        evidence=[*wrong, *worse.values(), *costs, *undecided],
    )


def _state(base: CellFacts, new: CellFacts) -> str:
    """What is to be said of a cell's validity beside its verdict; of one that is valid, nothing."""
    if new.errors:
        return "in both" if base.errors else ""
    if new.valid in (INVALID, UNDECIDED):
        return f"{new.valid} {'in both' if base.valid == new.valid else 'now'}"
    return "invalid before" if base.valid == INVALID else ""


def _figures(base: CellFacts, new: CellFacts) -> dict[str, tuple[float, float]]:
    found = {name: (base.quality.get(name, np.nan), new.quality.get(name, np.nan)) for name in _QUALITIES}
    for name in ("iterations", "token_evaluations", "depth"):
        before, after = (cell.layers[name].sum() if len(cell.layers) else np.nan for cell in (base, new))
        found[name] = before, after
    return found | {"cache_bytes": (base.cache_bytes, new.cache_bytes), "rounds": (len(base.rounds), len(new.rounds))}


_QUALITIES = ("deviation_rmse", "fid", "kid", "kid_std", "nonfinite_samples")

METHOD = (
    "method: a time is taken relative to those of sequential and of a forward pass in the same round, sequential's own "
    f"to the forward pass alone; its change is the Hodges-Lehmann estimate with its {1 - ALPHA:.0%} interval, and "
    f"counts beyond the tolerance where Mann-Whitney's p is below {ALPHA:g}; sequential's seconds have to tell it too, "
    "and where sequential moved against the forward pass, of the others the ratio to either; 'finds' is the least "
    "slow-down that is found so in 19 of 20 such comparisons, were the machine the same"
)


def _time(base: CellFacts, new: CellFacts, same_machine: bool, tolerance: float) -> tuple[Shift | None, str, str]:
    if not same_machine:
        return None, "not comparable", "times are not comparable"
    if noisy := [side for side, cell in (("base", base), ("new", new)) if cell.noisy]:
        return None, "not quiet", f"too few quiet rounds ({' and '.join(noisy)})"
    if new.description["decoder"] == BASELINE:  # its ratio to itself is 1, so it is measured by forward passes
        before, after = (cell.rounds["forward_ratio"].to_numpy() for cell in (base, new))
    else:
        before, after = relative_times([base.rounds, new.rounds])
    shift = shift_of_rounds(after, before, 1 - ALPHA)
    if np.isnan(shift.factor):
        return None, "not measured", "no paired rounds in both runs"
    few = np.isnan(shift.low)
    interval = "too few rounds for an interval" if few else f"[{shift.low - 1:+.1%}, {shift.high - 1:+.1%}]"
    verdict = judge(shift.factor, shift.p_value, tolerance)
    figures = f"time {shift.factor - 1:+.1%} {interval}, p = {shift.p_value:.2g}"
    if verdict == "ambiguous":
        figures += ": beyond the tolerance, yet within the noise; measure more rounds"
    elif verdict != "same" and (against := _against(verdict, base, new, tolerance)):
        verdict, figures = "ambiguous", f"{figures}, but {against}: the machine may have changed; measure both at once"
    return shift, verdict, figures


def _against(verdict: str, base: CellFacts, new: CellFacts, tolerance: float) -> str:
    """By what a time did not change as this verdict says, or nothing.

    From one session to the next a machine may become faster at small network calls than at large ones. So sequential's
    seconds have to have changed too; and where sequential moved against the forward pass, the others against both.
    """

    def change(name: str, over: str | None = None) -> Shift:
        after, before = (cell.rounds[name] / (cell.rounds[over] if over else 1) for cell in (new, base))
        return shift_of_rounds(after, before)

    if new.description["decoder"] == BASELINE:
        found = {"in seconds": change("wall_s")}
    elif change("reference_s", "encode_s").p_value < ALPHA:
        found = {"over sequential": change("wall_s", "reference_s"), "in forward passes": change("wall_s", "encode_s")}
    else:
        found = {}
    others = {name: one.factor for name, one in found.items() if judge(one.factor, 0.0, tolerance) != verdict}
    return listing([f"{factor - 1:+.1%} {name}" for name, factor in others.items()])


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


def _became_worse(base: CellFacts, new: CellFacts, tolerance: float) -> Iterator[tuple[str, str]]:
    if new.cache_bytes > base.cache_bytes * (1 + tolerance):
        yield "memory", f"cache {base.cache_bytes:,.0f} -> {new.cache_bytes:,.0f} bytes"
    before, after = base.quality, new.quality
    deviations = before.get("deviation_rmse", np.nan), after.get("deviation_rmse", np.nan)
    if deviations[1] > deviations[0] * (1 + tolerance) + DEVIATION_FLOOR:
        yield "deviation", f"deviation from sequential on the same latents {deviations[0]:.4g} -> {deviations[1]:.4g}"
    comparable = all(before.get(name) == after.get(name) for name in ("fid_features", "num_samples", "num_reference"))
    if not comparable or not before.get("fid_features"):
        return
    moved = after["kid"] - before["kid"]
    error = float(np.hypot(before["kid_std"], after["kid_std"]))
    if moved > KID_ERRORS * error and after["fid"] > before["fid"] * (1 + tolerance):
        yield (
            "FID",
            f"FID {before['fid']:.4g} -> {after['fid']:.4g} and KID {before['kid']:.3g} -> {after['kid']:.3g}, "
            f"{moved / error if error else np.inf:.1f} standard errors",
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
        verdict="failed" if cell.errors else "new",
        regressed_by=["failure"] if cell.errors else [],
        state=INVALID if cell.valid == INVALID and not cell.errors else "",
        new=cell.speedup,
        evidence=evidence,
    )


def _shown(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
