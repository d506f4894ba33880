"""What a command would do, and how long that took before: what ``--dry-run`` prints instead of doing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from harness.decoders import build_decoder
from harness.decoders.decoder import ScheduleRequest
from harness.errors import HarnessError
from harness.fitting.calibrate import most_samples, within
from harness.flows.checkpoints import load_flow
from harness.flows.protocols import CausalFlow
from harness.measure.cells import BASELINE, Cell
from harness.measure.expand import expand
from harness.measure.matrix import Matrix
from harness.measure.probes.probe import Probe
from harness.measure.recommend import CANDIDATES
from harness.measure.references import reference_digest, references
from harness.measure.run_probe import subject_of
from harness.measure.studies import StudyPlan
from harness.runs.baselines import RESULTS
from harness.runs.store import MANIFEST, Run, read_run
from harness.runs.tables import TABLES

PASSES = ("layers", "residuals", "quality", "memory")
"""Tables of the passes beside timing."""
MEMORY_DECODES = 3
"""Of one cell, for its memory."""


@dataclass(frozen=True)
class Plan:
    """What a command would do.

    Args:
        what: it is, such as ``"matrix 'quickstart'"``.
        size: of it in words, such as ``"12 cells, 340 decodes"``.
        seconds: that it takes, about; None where no stored run says.
        untimed: what of it the seconds leave out, in words.
        missing: sentences on what is made first, or cannot be measured.
    """

    what: str
    size: str
    seconds: float | None = None
    untimed: str = ""
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        took = "how long is not known: no stored run measured it"
        if self.seconds is not None:
            took = f"about {self.seconds / 60:.1f} min{self.untimed and f', {self.untimed} left out'}"
        return "\n".join([f"{self.what}: {self.size}; {took}", *(f"  missing: {one}" for one in self.missing)])


def plan_matrix(matrix: Matrix, out: Path, resume: bool = False, data_root: str | None = None) -> Plan:
    """What `run_matrix` would measure; with `resume`, what it would still measure. Raises HarnessError: as that."""
    there = [read_run(out)] if resume and (out / MANIFEST).is_file() else []
    now = references(matrix, data_root)
    started = now | {name: one for run in there for name, one in run.manifest.get("references", {}).items()}
    cells = expand(matrix, data_root, {name: reference_digest(one) for name, one in started.items()})
    rounds = [run.table("timings").groupby("cell_id")["round"].nunique().to_dict() for run in there]
    done = {name: run.cell_ids(name) for run in there for name in PASSES}
    times = _Times([*there, *_stored()])
    decodes, seconds, untimed = 0, 0.0, 0
    present = [cell for cell in cells if cell.absent is None]
    for cell in present:
        count, wall_s = _decodes(matrix, cell, done, sum(each.get(cell.cell_id, 0) for each in rounds)), times.of(cell)
        decodes += count
        seconds += count * (wall_s or 0.0)
        untimed += 0 if wall_s else count
    without = [name for name, one in now.items() if one["images"] is None]
    lacking = dict.fromkeys(
        [f"{cell.dataset} is skipped: {cell.absent}" for cell in cells if cell.absent]
        + [one for cell in cells if cell.absent is None and cell.fitted is None for one in _lacking(cell)]
        + [f"real images of {name}, which FID and reconstruction want" for name in without]
    )
    size = f"{len(present):,} cells, {decodes:,} decodes"
    left_out = f"{untimed:,} decodes without a stored time" if untimed else ""
    known = seconds or not untimed
    return Plan(f"matrix '{matrix.name}'", size, seconds if known else None, left_out, tuple(lacking))


def plan_probe(
    name: str, probe: Probe, checkpoint: str, weights: str | None = None, data_root: str | None = None
) -> Plan:
    """What `run_probe` would measure."""
    subject = subject_of(probe, checkpoint, None, "cpu", data_root, weights)
    flow = subject.load()
    missing = [one for decoder, batch in probe.reads() for one in to_be_made(decoder.needs(flow, batch), flow)]
    return Plan(
        f"probe {name} on {checkpoint}", f"{len(probe.units(flow, subject))} units", missing=(*dict.fromkeys(missing),)
    )


def plan_choices(
    checkpoint: str, batches: Iterable[int], budgets: Iterable[float | None], seconds: float, weights: str | None,
    candidates: Iterable[Any] = CANDIDATES, tuned: bool = False,
) -> Plan:  # fmt: skip
    """What `measure_choices` would fit and measure; `tuned`: schedules are made whether there are any or not."""
    flow = load_flow(checkpoint, weights=weights)
    asked = list(product(batches, budgets))
    autos = [(build_decoder("auto", budget=budget), batch, budget) for batch, budget in asked]
    needs = [need for auto, batch, budget in autos for need in auto.missing(flow, batch)]
    needs += [ScheduleRequest(*one) for one in asked if tuned]
    cells = len({batch for batch, _ in asked}) * len([*candidates]) + len(asked)
    missing = tuple(dict.fromkeys(to_be_made(needs, flow)))
    return Plan(f"choices for {checkpoint}", f"{cells} cells", seconds, "fitting" if needs else "", missing)


def plan_calibration(flow: CausalFlow, samples: int | None, seconds: float | None = None) -> Plan:
    """What `store_calibration` would fit; how long it may take, where exact decodes are stored that say so."""
    name = flow.source.stem if flow.source else "the flow"
    exact_s = _Times(_stored()).exact(name, 1)
    size = f"{samples:,}" if samples else f"at most {most_samples(flow):,}"
    most_s = within(flow, exact_s) if seconds is None and exact_s else seconds
    return Plan(f"calibration of {name}", f"{size} samples decoded exactly, {flow.num_layers} layers fitted", most_s)


def plan_study(
    study: StudyPlan, profile: str, out: Path, resume: bool, data_root: str | None, took: tuple[str, float] | None
) -> list[Plan]:
    """What `execute` would measure, then run by run: all of it, as long as it `took` in this profile before; with
    `resume` what is left of that time.
    """
    folder = out / study.name
    absent = study.absent(profile, data_root)
    matrices, probes = study.work(profile, absent)
    runs = [plan_matrix(matrix, folder / name, resume, data_root) for name, matrix in matrices]
    runs += [plan_probe(name, probe, flow, data_root=data_root) for _, name, probe, flow in probes]
    there = [read_run(path.parent).manifest for path in folder.rglob(MANIFEST)] if resume else []
    spent = [float(manifest["seconds"]) for manifest in there if "seconds" in manifest]
    seconds = max(took[1] - sum(spent), 0.0) if took and took[0] == profile else None
    seconds = 0.0 if 0 < len(runs) <= len(spent) else seconds
    whole = Plan(f"study {study.name}, profile {profile}", f"{len(runs)} runs", seconds, missing=(*absent.values(),))
    return [whole, *runs]


def to_be_made(needs: Iterable[Any], flow: CausalFlow) -> Iterator[str]:
    """What a decoder misses of a flow, in words."""
    for need in needs:
        what = f"a schedule for batch {need.batch}" if isinstance(need, ScheduleRequest) else need
        yield f"{what} of {flow.source.stem if flow.source else 'the flow'}; it is made first"


def _lacking(cell: Cell) -> Iterator[str]:
    decoder = cell.build()
    if decoder.reads:
        flow = cell.load()
        yield from to_be_made(decoder.needs(flow, cell.batch_size), flow)


def _decodes(matrix: Matrix, cell: Cell, done: Mapping[str, set[str]], timed: int) -> int:
    """Decodes of a batch that are left for a cell: in paired rounds, and in the passes that its matrix enables."""
    rounds = max(0, matrix.timing.rounds - timed)
    of = {
        "layers": 1,
        "residuals": int(matrix.residuals.enabled),
        "quality": -(-matrix.quality.num_samples // cell.batch_size) * matrix.quality.enabled,
        "memory": MEMORY_DECODES * matrix.memory.enabled,
    }
    left = sum(of[name] for name in PASSES if cell.cell_id not in done.get(name, ()))
    return left + (rounds + matrix.timing.warmup if rounds else 0)


class _Times:
    """Seconds of a decode of a batch in some runs."""

    def __init__(self, runs: Iterable[Run]) -> None:
        rows = pd.concat([TABLES["timings"].empty(), *(run.table("timings") for run in runs)])
        self._rows = rows[rows["status"] == "ok"]

    def of(self, cell: Cell) -> float | None:
        """The median of the same decoder with the same options, else of its kind, else of sequential decoding."""
        rows = self._rows[self._rows["checkpoint"].eq(cell.checkpoint) & self._rows["batch_size"].eq(cell.batch_size)]
        tau = rows["tau"].isna() if cell.tau is None else rows["tau"].eq(cell.tau)
        choices = (rows["label"].eq(cell.label) & tau, *(rows["decoder"].eq(name) for name in (cell.decoder, BASELINE)))
        return next((float(rows.loc[chosen, "wall_s"].median()) for chosen in choices if chosen.any()), None)

    def exact(self, checkpoint: str, count: int) -> float | None:
        """Of so many samples by sequential decoding, in the largest batches whose time is known."""
        rows = self._rows[self._rows["checkpoint"].eq(checkpoint) & self._rows["decoder"].eq(BASELINE)]
        batch = rows["batch_size"].max()
        return float(rows.loc[rows["batch_size"] == batch, "wall_s"].median() * count / batch) if len(rows) else None


def _stored() -> Iterator[Run]:
    """The runs stored with the code; other files of this name below the working folder are none."""
    roots = {root.resolve() for root in RESULTS if root.is_dir()}
    for path in sorted(path for root in roots for path in root.rglob(MANIFEST)):
        with suppress(HarnessError):
            yield read_run(path.parent)
