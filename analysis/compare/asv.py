"""Benchmarks of one commit against another's, from the JSON that asv stores; `asv compare` never fails, this does.

``track_`` values need no clock and are compared across machines. Seconds and bytes are compared on one machine only:
seconds by all their samples, bytes less those of the same process before the call.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from analysis.compare.render import text
from analysis.compare.verdicts import ALPHA, VERDICTS, Comparison, Verdict, judge
from analysis.statistics import shift_of_rounds
from harness.errors import HarnessError

RESULTS = Path(".asv") / "results"
COSTS = Path("results") / "baselines" / "asv.json"
"""The stored costs that `make bench-compare` compares with where no commit is named."""
TOLERANCE = 0.1
"""Larger than for paired rounds: what asv measures on two days shares no drift that could cancel."""
LEAST_BYTES = 1 << 20
"""Growth of peak memory below this is the allocator's."""
MACHINE = ("arch", "cpu", "num_cpu", "os", "machine")


@dataclass(frozen=True)
class Measurement:
    """One benchmark with one set of parameters."""

    value: float  # median, count or bytes; NaN where it was left out or failed
    samples: np.ndarray  # seconds, where they were recorded
    version: str


@dataclass(frozen=True)
class Results:
    """What asv stored for one commit on one machine."""

    path: Path
    commit: str
    machine: dict[str, str]
    measurements: dict[str, Measurement]


@dataclass(frozen=True, kw_only=True)
class BenchmarkVerdict(Verdict):
    """What became of one benchmark: slower also where a tracked cost or the peak memory grew."""

    HEADINGS: ClassVar = ("verdict", "benchmark", "evidence")
    PLURAL: ClassVar = "benchmarks"

    name: str

    def row(self) -> list[str]:
        return [self.verdict, self.name, "; ".join(self.evidence)]


def read_results(path: Path) -> Results:
    """Read one of asv's result files; a `HarnessError` for any other."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        columns, commit, machine = data["result_columns"], data["commit_hash"], data["params"]
        found = dict(
            measured
            for name, row in data["results"].items()
            for measured in _measurements(name, dict(zip(columns, row, strict=False)))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(f"'{path}' is no result file of asv: {error}") from error
    return Results(path, commit, {key: str(machine.get(key)) for key in MACHINE}, found)


def find_results(what: str, root: Path = RESULTS) -> Results:
    """Results by file, or by commit: the newest file that asv stored for it, a `HarnessError` where there is none."""
    if Path(what).is_file():
        return read_results(Path(what))
    command = ["git", "rev-parse", "--verify", "--quiet", f"{what}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise HarnessError(f"'{what}' is neither a result file nor a commit of this repository")
    commit = done.stdout.strip()
    files = sorted(root.glob(f"*/{commit[:8]}-*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise HarnessError(f"there are no results of '{what}' under '{root}'; check it out and run `make bench`")
    return read_results(files[-1])


def save_costs(results: Results, target: Path = COSTS) -> Path:
    """Store the tracked costs alone, which carry from machine to machine, as a result file to compare with."""
    data = json.loads(results.path.read_text(encoding="utf-8"))
    columns = ["result", "params", "version"]
    kept = {
        name: [dict(zip(data["result_columns"], row, strict=False))[column] for column in columns]
        for name, row in sorted(data["results"].items())
        if ".track_" in name
    }
    stored = {"commit_hash": results.commit, "params": {}, "result_columns": columns, "results": kept}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    return target


def compare_results(base: Results, new: Results, tolerance: float = TOLERANCE) -> Comparison[BenchmarkVerdict]:
    """Compare every benchmark that both hold in the same version, and name those that one of them lacks.

    Time, memory or a tracked cost may grow by the share `tolerance`. A `HarnessError` where nothing is in common.
    """
    same_machine = base.machine == new.machine
    notes = [] if same_machine else ["not one machine: tracked costs are compared, no time and no memory"]
    before, after = (_comparable(results, same_machine) for results in (base, new))
    common = [name for name in before if name in new.measurements]
    changed = [name for name in common if before[name].version != new.measurements[name].version]
    if changed:
        notes.append(f"{len(changed)} benchmarks changed their version and are left out, such as {changed[0]}")
    compared = [name for name in common if name not in changed]
    if not compared:
        raise HarnessError(f"'{base.path}' and '{new.path}' have no benchmark in common that could be compared")
    verdicts = [
        *(_compare(name, base.measurements, new.measurements, tolerance) for name in compared),
        *(BenchmarkVerdict(name=name, verdict="gone") for name in before if name not in new.measurements),
        *(BenchmarkVerdict(name=name, verdict="new") for name in after if name not in before),
    ]
    verdicts.sort(key=lambda one: (VERDICTS.index(one.verdict), one.name))
    return Comparison(verdicts, same_machine, tolerance, notes)


def _comparable(results: Results, same_machine: bool) -> dict[str, Measurement]:
    return {
        name: found
        for name, found in results.measurements.items()
        if (same_machine or ".track_" in name) and ".peakmem_setup" not in name and not math.isnan(found.value)
    }


def print_comparison(base: Results, new: Results, tolerance: float = TOLERANCE) -> int:
    """Compare and print what is not the same; the exit code, 1 for a regression."""
    comparison = compare_results(base, new, tolerance)
    print(f"{base.commit[:8]} -> {new.commit[:8]}")
    print(text(comparison, [verdict for verdict in comparison.verdicts if verdict.verdict != "same"]))
    return int(comparison.regressed)


def _measurements(name: str, row: dict[str, Any]) -> Iterator[tuple[str, Measurement]]:
    """asv keeps parameters as lists and results in the order of their product."""
    combinations = list(product(*row["params"])) if row.get("params") else [()]
    values = row["result"] if row["result"] is not None else [None] * len(combinations)
    samples = row.get("samples") or [None] * len(combinations)
    for combination, value, seconds in zip(combinations, values, samples, strict=True):
        title = f"{name}({', '.join(text.strip(chr(39)) for text in combination)})" if combination else name
        known = math.nan if value is None else value
        yield title, Measurement(known, np.asarray(seconds or [], dtype=float), str(row.get("version")))


def _compare(
    name: str, base: dict[str, Measurement], new: dict[str, Measurement], tolerance: float
) -> BenchmarkVerdict:
    before, after = base[name].value, new[name].value
    if math.isnan(after):
        verdict, evidence = "failed", f"was {before:.4g}, now there is no result"
    elif ".time_" in name:
        verdict, evidence = _compare_seconds(base[name], new[name], tolerance)
    elif ".peakmem_" in name:
        setup = name.replace(".peakmem_run", ".peakmem_setup")
        least = [values[setup].value if setup in values else 0.0 for values in (base, new)]
        own, now = max(before - least[0], 0.0), max(after - least[1], 0.0)
        verdict = _of_cost(own, now, tolerance, LEAST_BYTES)
        evidence = f"{own / 1e6:.1f} -> {now / 1e6:.1f} MB beyond set-up"
    else:
        verdict, evidence = _of_cost(before, after, tolerance), f"{before:.6g} -> {after:.6g}"
    kind = "time" if ".time_" in name else "memory" if ".peakmem_" in name else "cost"
    by = {"failed": ["failure"], "slower": [kind]}.get(verdict, [])
    return BenchmarkVerdict(name=name, verdict=verdict, regressed_by=by, evidence=[evidence])


def _compare_seconds(before: Measurement, after: Measurement, tolerance: float) -> tuple[str, str]:
    shift = shift_of_rounds(after.samples, before.samples, 1 - ALPHA)
    words = f"{before.value:.3g} -> {after.value:.3g} s"
    if math.isnan(shift.factor):
        factor = after.value / before.value
        return judge(factor, math.nan, tolerance), f"{words}, {factor - 1:+.1%}; samples were not recorded"
    evidence = f"{words}, {shift.factor - 1:+.1%}, Mann-Whitney p = {shift.p_value:.2g}"
    return judge(shift.factor, shift.p_value, tolerance), evidence


def _of_cost(before: float, after: float, tolerance: float, least: float = 0.0) -> str:
    """The verdict on what needs no clock; a change of no more than `least` is none."""
    grown, shrunk = (
        big > small * (1 + tolerance) and big - small > least for big, small in ((after, before), (before, after))
    )
    return "slower" if grown else "faster" if shrunk else "same"
