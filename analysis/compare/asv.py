"""Benchmarks of one commit against another's, from the JSON that asv stores; `asv compare` never fails, this does.

``track_`` values need no clock and are compared across machines. Seconds and bytes are compared on one machine only:
seconds by all their samples, bytes less those of the same process before the call.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compare.verdicts import ALPHA
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
    """One benchmark with one set of parameters.

    Args:
        value: median, count or bytes; NaN where it was left out, None where it failed.
        samples: seconds, where they were recorded.
    """

    value: float | None
    samples: np.ndarray
    version: str


@dataclass(frozen=True)
class Results:
    """What asv stored for one commit on one machine."""

    path: Path
    commit: str
    machine: dict[str, str]
    measurements: dict[str, Measurement]


@dataclass(frozen=True)
class Benchmark:
    """The verdict on one benchmark: ``"failed"``, ``"worse"``, ``"better"``, ``"same"`` or ``"ambiguous"``."""

    name: str
    verdict: str
    evidence: str

    @property
    def regressed(self) -> bool:
        """Whether the comparison fails because of it."""
        return self.verdict in ("failed", "worse")


@dataclass(frozen=True)
class BenchmarkComparison:
    """Every common benchmark's verdict, regressions first, and what a reader should know."""

    benchmarks: list[Benchmark]
    notes: list[str] = field(default_factory=list)

    @property
    def regressed(self) -> bool:
        """Whether any benchmark regressed."""
        return any(benchmark.regressed for benchmark in self.benchmarks)


def read_results(path: Path) -> Results:
    """Read one of asv's result files.

    Raises:
        HarnessError: it is no such file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        columns, commit, machine = data["result_columns"], data["commit_hash"], data["params"]
        found: dict[str, Measurement] = {}
        for name, row in data["results"].items():
            found.update(_measurements(name, dict(zip(columns, row, strict=False))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(f"'{path}' is no result file of asv: {error}") from error
    return Results(path, commit, {key: str(machine.get(key)) for key in MACHINE}, found)


def find_results(what: str, root: Path = RESULTS) -> Results:
    """Results by file, or by commit: the newest file that asv stored for it.

    Raises:
        HarnessError: there are none.
    """
    if Path(what).is_file():
        return read_results(Path(what))
    commit = _resolve(what)
    files = sorted(root.glob(f"*/{commit[:8]}-*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise HarnessError(f"there are no results of '{what}' under '{root}'; check it out and run `make bench`")
    return read_results(files[-1])


def save_costs(results: Results, target: Path = COSTS) -> Path:
    """Store the tracked costs alone, which carry from machine to machine, as a result file to compare with.

    Args:
        results: of any commit.
        target: the file, replaced if it is there.
    """
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


def compare_results(base: Results, new: Results, tolerance: float = TOLERANCE) -> BenchmarkComparison:
    """Compare every benchmark that both hold, in the same version.

    Args:
        base: the stored results.
        new: those under test.
        tolerance: share by which time, memory or a tracked cost may grow.

    Raises:
        HarnessError: they have no benchmark in common.
    """
    same_machine = base.machine == new.machine
    notes = [] if same_machine else ["not one machine: tracked costs are compared, no time and no memory"]
    common = [name for name in base.measurements if name in new.measurements]
    changed = [name for name in common if base.measurements[name].version != new.measurements[name].version]
    if changed:
        notes.append(f"{len(changed)} benchmarks changed their version and are left out, such as {changed[0]}")
    verdicts = [
        verdict
        for name in common
        if name not in changed and (same_machine or ".track_" in name)
        for verdict in _compare(name, base.measurements, new.measurements, tolerance)
    ]
    if not verdicts:
        raise HarnessError(f"'{base.path}' and '{new.path}' have no benchmark in common that could be compared")
    order = ("failed", "worse", "ambiguous", "better", "same")
    return BenchmarkComparison(sorted(verdicts, key=lambda one: (order.index(one.verdict), one.name)), notes)


def print_comparison(base: Results, new: Results, tolerance: float = TOLERANCE) -> int:
    """Compare and print what is not the same; the exit code, 1 for a regression."""
    comparison = compare_results(base, new, tolerance)
    for benchmark in comparison.benchmarks:
        if benchmark.verdict != "same":
            print(f"{benchmark.verdict:<9}  {benchmark.name}  {benchmark.evidence}")
    for note in comparison.notes:
        print(f"note: {note}")
    count = sum(benchmark.regressed for benchmark in comparison.benchmarks)
    end = f"{count} regressed" if count else "no regression"
    print(
        f"{base.commit[:8]} -> {new.commit[:8]}: {len(comparison.benchmarks)} benchmarks, {end} "
        f"beyond a tolerance of {tolerance:.0%}"
    )
    return int(comparison.regressed)


def _measurements(name: str, row: dict[str, Any]) -> Iterator[tuple[str, Measurement]]:
    """asv keeps parameters as lists and results in the order of their product."""
    combinations = list(product(*row["params"])) if row.get("params") else [()]
    values = row["result"] if row["result"] is not None else [None] * len(combinations)
    samples = row.get("samples") or [None] * len(combinations)
    for combination, value, seconds in zip(combinations, values, samples, strict=True):
        title = f"{name}({', '.join(text.strip(chr(39)) for text in combination)})" if combination else name
        yield title, Measurement(value, np.asarray(seconds or [], dtype=float), str(row.get("version")))


def _compare(
    name: str, base: dict[str, Measurement], new: dict[str, Measurement], tolerance: float
) -> Iterator[Benchmark]:
    before, after = base[name], new[name]
    if before.value is None or math.isnan(before.value) or ".peakmem_setup" in name:
        return
    if after.value is None or math.isnan(after.value):
        yield Benchmark(name, "failed", f"was {before.value:.4g}, now there is no result")
    elif ".time_" in name:
        yield _compare_seconds(name, before, after, tolerance)
    elif ".peakmem_" in name:
        setup = name.replace(".peakmem_run", ".peakmem_setup")
        own = [max(_value(values, name) - _value(values, setup), 0.0) for values in (base, new)]
        evidence = f"{own[0] / 1e6:.1f} -> {own[1] / 1e6:.1f} MB beyond set-up"
        grown, shrunk = (a > b * (1 + tolerance) and a - b > LEAST_BYTES for a, b in (own[::-1], own))
        yield Benchmark(name, "worse" if grown else "better" if shrunk else "same", evidence)
    else:
        evidence = f"{before.value:.6g} -> {after.value:.6g}"
        worse, better = (a > b * (1 + tolerance) for a, b in ((after.value, before.value), (before.value, after.value)))
        yield Benchmark(name, "worse" if worse else "better" if better else "same", evidence)


def _compare_seconds(name: str, before: Measurement, after: Measurement, tolerance: float) -> Benchmark:
    assert before.value is not None and after.value is not None
    if not len(before.samples) or not len(after.samples):
        factor, p_value = after.value / before.value, math.nan
        evidence = f"{before.value:.3g} -> {after.value:.3g} s, {factor - 1:+.1%}; samples were not recorded"
    else:
        shift = shift_of_rounds(after.samples, before.samples, 1 - ALPHA)
        factor, p_value = shift.factor, shift.p_value
        evidence = f"{before.value:.3g} -> {after.value:.3g} s, {factor - 1:+.1%}, Mann-Whitney p = {p_value:.2g}"
    if max(factor, 1 / factor) <= 1 + tolerance:
        return Benchmark(name, "same", evidence)
    if not p_value < ALPHA:
        return Benchmark(name, "ambiguous", evidence)
    return Benchmark(name, "worse" if factor > 1 else "better", evidence)


def _value(values: dict[str, Measurement], name: str) -> float:
    measurement = values.get(name)
    return 0.0 if measurement is None or measurement.value is None else measurement.value


def _resolve(what: str) -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{what}^{{commit}}"], capture_output=True, text=True
    )
    if done.returncode:
        raise HarnessError(f"'{what}' is neither a result file nor a commit of this repository")
    return done.stdout.strip()
