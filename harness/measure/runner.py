"""A matrix from start to end: cells, then pass after pass, each unit's rows stored before its worker goes on.

What measures has no access to the run folder: rows and files come back to this process, the only one that writes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from harness import __version__
from harness.errors import HarnessError, StoreError
from harness.files import make_folder, replacing
from harness.measure.cells import Cell, expand
from harness.measure.matrix import Matrix
from harness.measure.preparation import described, skipped
from harness.measure.tasks import LayersPass, MemoryPass, Pass, QualityPass, ResidualsPass, SamplesPass, TimingPass
from harness.measure.tasks.quality import SHARD, SHARDS
from harness.measure.units import Unit, failed_cells
from harness.measure.workers.dispatch import RETRIES, Finished, Lost, Started, measure
from harness.measure.workers.executor import Executor
from harness.measure.workers.jobs import Outcome, jobs_of
from harness.measure.workers.local import Local
from harness.progress import Reporter
from harness.runs.environment import environment
from harness.runs.store import MANIFEST, Run, RunStore
from harness.runs.tables import TABLES


def run_matrix(
    matrix: Matrix,
    out: Path,
    reporter: Reporter,
    *,
    resume: bool = False,
    threads: int | None = None,
    data_root: str | None = None,
    inception_weights: str | None = None,
    skip_corrupt: bool = False,
    executor: Executor | None = None,
    retries: int = RETRIES,
) -> Run:
    """Measure every cell of a matrix, or what a killed run has left of it.

    Args:
        matrix: what to measure.
        out: the run folder: new or empty, or with `resume` one that this matrix was started in.
        reporter: told of every unit.
        resume: continue what is there; where nothing is there, start.
        threads: of torch on the CPU; by default as many as torch takes.
        data_root: folder of the real images.
        inception_weights: file of Inception's weights.
        skip_corrupt: leave corrupt real images out; the quality rows count them.
        executor: where jobs run: in fresh processes of this machine by default.
        retries: times that a job is run again when its worker was lost.

    Returns:
        The finished run. A cell that failed is a row with its status; nothing else is lost by it.

    Raises:
        LostJobsError: jobs were lost more often than that; all others are done.
        HarnessError: anything wrong with the matrix, checkpoints or options, found before anything is measured.
        StoreError: a folder that cannot be used.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    everything = expand(matrix, data_root)
    cells = [cell for cell in everything if cell.absent is None]
    executor = executor or Local()
    executor.prepare(everything[0].device)
    descriptions, doubts = described(everything)
    with _open(out, matrix, everything, resume) as store, reporter, closing(executor):
        for path in store.damaged:
            reporter.note(f"a damaged part was moved to '{path}'; its rows are measured again")
        known = store.cell_ids("cells")
        store.append("cells", [row for row in descriptions if row["cell_id"] not in known])
        for sentence in doubts:
            reporter.note(sentence)
        new = [cell for cell in everything if cell.absent and cell.cell_id not in known]
        for table, rows in skipped(new).items():
            store.append(table, rows)
        for dataset, reason in dict.fromkeys((cell.dataset, cell.absent) for cell in new):
            reporter.note(f"{dataset} is skipped: {reason}")
        driver = _Driver(store, reporter, executor, retries, threads)
        if not cells:
            return store.run
        quality = QualityPass(matrix.quality, data_root, inception_weights, skip_corrupt, driver.shard(cells, matrix))
        driver.run(_phases(matrix, quality), cells)
        store.compact()
        return store.run


def _phases(matrix: Matrix, quality: QualityPass) -> list[list[Pass]]:
    """The passes that the matrix asks for. Those of a phase begin when all of the one before are done.

    Timing is first, and alone: what fails there is not tried again, and nothing runs beside it.
    """
    traces: list[Pass] = [LayersPass()]
    if matrix.residuals.enabled:
        traces.append(ResidualsPass())
    phases: list[list[Pass]] = [[TimingPass(matrix.timing.rounds, matrix.timing.warmup)], traces]
    if matrix.quality.enabled:
        phases += [[SamplesPass(quality)], [quality]]
    if matrix.memory.enabled:
        phases.append([MemoryPass()])
    return phases


class LostJobsError(HarnessError):
    """Jobs whose workers were lost again and again."""


class _Driver:
    """Hands out jobs and stores what comes back."""

    def __init__(
        self, store: RunStore, reporter: Reporter, executor: Executor, retries: int, threads: int | None
    ) -> None:
        self.store, self.reporter, self.executor, self.retries = store, reporter, executor, retries
        self.threads = threads
        self.lost: list[str] = []

    def shard(self, cells: Sequence[Cell], matrix: Matrix) -> int:
        """Samples of a cell that one worker measures at a time: as many as let all workers work."""
        slots = self.executor.slots(cells[0].device, exclusive=False)
        return min(SHARD, -(-matrix.quality.num_samples // slots))

    def run(self, phases: list[list[Pass]], cells: Sequence[Cell]) -> None:
        """Run what is missing.

        Raises:
            LostJobsError: jobs that were lost too often.
        """
        missing = [[one.missing(cells, self.store) for one in work] for work in phases]
        self.reporter.begin(sum(unit.cost for work in missing for units in work for unit in units))
        for place, work in enumerate(phases):
            if place:  # what the phases before left of it
                missing[place] = [one.missing(cells, self.store) for one in work]
            failed, device = failed_cells(self.store), cells[0].device
            jobs = [
                job
                for one, units in zip(work, missing[place], strict=True)
                for job in jobs_of(
                    one,
                    units,
                    self.executor.slots(device, one.exclusive),
                    failed=failed,
                    device=device,
                    threads=self.threads,
                )
            ]
            with closing(measure(self.executor, jobs, self.store.path, self.retries)) as events:
                for event in events:
                    if isinstance(event, Started):
                        self.reporter.unit(event.job.work.name, event.unit.title)
                    elif isinstance(event, Finished):
                        self._store(event.job.work.name, event.unit, event.outcome, event.attempts)
                        self.reporter.advance(event.unit.cost)
                    else:
                        self._note(event)
        if self.lost:
            raise LostJobsError(
                f"{len(self.lost)} jobs were lost more than {self.retries} times and are not measured: "
                f"{self.lost[-1]}; all others are stored, and --resume tries these again"
            )
        shutil.rmtree(self.store.path / SHARDS, ignore_errors=True)

    def _store(self, work: str, unit: Unit, outcome: Outcome, attempts: int) -> None:
        sessions = self.store.manifest["sessions"]
        if outcome.session not in sessions:
            self.store.write_manifest(_with_session(self.store.manifest, outcome))
        for name, data in outcome.files.items():
            path = self.store.path / name
            make_folder(path.parent)
            with replacing(path) as partial:
                partial.write_bytes(data)
        for table, rows in outcome.rows.items():
            told = {"attempts": attempts} if "attempts" in TABLES[table].names else {}
            self.store.append(table, [row | told for row in rows])
            for sentence in sorted({row["error"] for row in rows if row.get("error")}):
                self.reporter.note(f"{work}, {unit.title}: {sentence}")
        for name in unit.inputs:
            (self.store.path / name).unlink(missing_ok=True)

    def _note(self, lost: Lost) -> None:
        title = lost.job.units[0].title
        then = "; it runs again" if lost.again else ""
        self.reporter.note(f"{lost.job.work.name}, {title}: {lost.reason}{then}")
        if not lost.again:
            self.lost.append(lost.reason)


def _with_session(manifest: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """A manifest that knows one more session. Its environment is that of the sessions, where they agree."""
    known = {**manifest["sessions"], outcome.session: dict(outcome.surroundings)}
    environments = [session["environment"] for session in known.values()]
    fingerprints = {facts["fingerprint"] for facts in environments}
    shared = environments[0] if len(fingerprints) == 1 else environments[0] | {"fingerprint": None}
    return manifest | {"sessions": known, "environment": shared}


def _open(out: Path, matrix: Matrix, cells: list[Cell], resume: bool) -> RunStore:
    """The run folder."""
    plan = {
        "matrix": matrix.model_dump(mode="json") | {"device": cells[0].device},
        "cells": hashlib.sha256(json.dumps(sorted(cell.cell_id for cell in cells)).encode()).hexdigest(),
        "code_versions": sorted({cell.code_version for cell in cells}),
        "checkpoints": {cell.checkpoint: cell.checkpoint_digest for cell in cells if not cell.absent},
        "skipped": {cell.dataset: cell.absent for cell in cells if cell.absent},
    }
    if resume and (out / MANIFEST).is_file():
        store = RunStore.resume(out)
        try:
            _require_same(store, plan)
        except StoreError:
            store.close()
            raise
        return store
    facts = environment(cells[0].device)  # of this process, until the first that measures tells its own
    return RunStore.create(out, {"harness": __version__, **plan, "environment": facts, "sessions": {}})


def _require_same(store: RunStore, plan: dict[str, Any]) -> None:
    """Refuse to add rows to a run of something else.

    Raises:
        StoreError: what differs.
    """
    there, advice = store.manifest, "give another --out"
    if there.get("matrix") != plan["matrix"]:
        key = _first_difference(there.get("matrix"), plan["matrix"])
        raise StoreError(f"'{store.path}' was started with another matrix ('{key}' differs); {advice}")
    if there.get("checkpoints") != plan["checkpoints"]:
        raise StoreError(f"'{store.path}' was started with other checkpoints; {advice}")
    if there.get("code_versions") != plan["code_versions"]:
        raise StoreError(
            f"'{store.path}' was started with other code of flows or decoders; its rows would not compare, so {advice}"
        )
    if there.get("cells") != plan["cells"]:
        raise StoreError(f"'{store.path}' was started for other cells, such as those of another device; {advice}")


def _first_difference(old: Any, new: Any, path: str = "matrix") -> str:
    """The path of the first key whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{path}.{key}")
    return path
