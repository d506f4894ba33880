"""The one engine: units of tasks on workers, each unit's rows stored before its worker goes on.

What measures has no access to where rows are stored: rows and files come back to this process, the only one that
writes. A matrix, a probe and a request for samples differ only in their tasks, and in the sink that takes what comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from harness import __version__
from harness.errors import HarnessError
from harness.files import make_folder, replacing
from harness.measure.units import Attempt, Task, Unit, Work
from harness.measure.workers.dispatch import RETRIES, Finished, Started, dispatch
from harness.measure.workers.executor import Executor
from harness.measure.workers.job import Outcome, jobs_of
from harness.measure.workers.local import Local
from harness.metrics.neighbours import notice
from harness.progress import Reporter
from harness.runs.environment import environment
from harness.runs.store import MANIFEST, RunStore

Phases = Sequence[Sequence[Work]]


class LostJobsError(HarnessError):
    """Jobs whose workers were lost again and again."""


class Sink(Protocol):
    """Takes what units come to."""

    @property
    def path(self) -> Path:
        """The folder where files lie that units name as inputs."""
        ...

    def add(self, task: Task, unit: Unit, outcome: Outcome, attempts: int) -> None:
        """Store rows and files of a unit; `attempts` is how often its job was begun."""
        ...


def run(
    phases: Phases,
    sink: Sink,
    executor: Executor,
    reporter: Reporter,
    *,
    device: str,
    threads: int | None = None,
    retries: int = RETRIES,
    failed: Callable[[], Mapping[str, Attempt[Any]]] = dict,
) -> None:
    """Measure what is missing. Raises LostJobsError: jobs were lost too often; all others are done.

    Args:
        phases: the tasks of one phase begin when all of the one before are done.
        retries: times that a job is run again when its worker was lost.
        failed: finds what is not tried again, for each phase anew.
    """
    missing = [[work.missing() for work in phase] for phase in phases]
    timed = any(work.task.exclusive for work, units in zip(chain(*phases), chain(*missing), strict=True) if units)
    if timed and isinstance(executor, Local):  # of other machines their own sessions tell
        notice(reporter.note, threads or torch.get_num_threads())
    reporter.begin(sum(unit.cost for phase in missing for units in phase for unit in units))
    lost: list[str] = []
    for place, phase in enumerate(phases):
        if place:  # what the phases before left of it
            missing[place] = [work.missing() for work in phase]
        shared = {"failed": failed(), "device": device, "threads": threads}
        jobs = [
            job
            for work, units in zip(phase, missing[place], strict=True)
            for job in jobs_of(work.task, units, executor.slots(device, work.task.exclusive), **shared)
        ]
        with closing(dispatch(executor, jobs, sink.path, retries)) as events:
            for event in events:
                task = event.job.task
                if isinstance(event, Started):
                    reporter.unit(task.name, event.unit.title)
                elif isinstance(event, Finished):
                    sink.add(task, event.unit, event.outcome, event.attempts)
                    errors = {row["error"] for rows in event.outcome.rows.values() for row in rows if row.get("error")}
                    for sentence in [*event.outcome.notes, *sorted(errors)]:
                        reporter.note(f"{task.name}, {event.unit.title}: {sentence}")
                    reporter.advance(event.unit.cost)
                else:
                    then = "; it runs again" if event.again else ""
                    reporter.note(f"{task.name}, {event.job.units[0].title}: {event.reason}{then}")
                    lost += [] if event.again else [event.reason]
    if lost:
        raise LostJobsError(
            f"{len(lost)} jobs were lost more than {retries} times and are not measured: {lost[-1]}; all others are "
            "stored, and --resume tries these again"
        )


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder, each whole or not at all. Raises StoreError: one cannot be written."""
    for name, data in files.items():
        path = folder / name
        make_folder(path.parent)
        with replacing(path) as partial:
            partial.write_bytes(data)


def open_store(out: Path, device: str, resume: bool, facts: Mapping[str, Any] | None = None) -> RunStore:
    """A run folder: with `resume` the one that is there, else a new one, with further facts in its manifest."""
    if resume and (out / MANIFEST).is_file():
        store = RunStore.resume(out)
        if "sessions" not in store.manifest:
            store.write_manifest(store.manifest | {"sessions": {}})
        return store
    own = {"harness": __version__, "environment": environment(device), "sessions": {}}  # until a session tells its own
    return RunStore.create(out, own | dict(facts or {}))


class RunSink:
    """A run folder as a sink: rows into its tables, and in its manifest the sessions that measured them and how long
    it was open, however that ended; where it was opened and nothing was left to measure, that does not count."""

    def __init__(self, store: RunStore) -> None:
        self.store, self.path = store, store.path

    def __enter__(self) -> Self:
        self._began, self._added = time.monotonic(), False
        return self

    def add(self, task: Task, unit: Unit, outcome: Outcome, attempts: int) -> None:
        self._added = True
        if outcome.session not in self.store.manifest["sessions"]:
            self.store.write_manifest(_with_session(self.store.manifest, outcome))
        write_files(self.path, outcome.files)
        for table, rows in outcome.rows.items():
            begun = {"attempts": attempts} if "attempts" in self.store.run.tables[table].columns else {}
            self.store.append(table, [row | begun for row in rows])
        for name in unit.inputs:
            (self.path / name).unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        if not self._added and "seconds" in self.store.manifest:
            return
        seconds = self.store.manifest.get("seconds", 0.0) + time.monotonic() - self._began
        self.store.write_manifest(self.store.manifest | {"seconds": round(seconds, 1)})


def _with_session(manifest: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """A manifest that knows one more session. Its environment is that of the sessions, where they agree."""
    known = {**manifest["sessions"], outcome.session: dict(outcome.surroundings)}
    environments = [session["environment"] for session in known.values()]
    fingerprints = {facts["fingerprint"] for facts in environments}
    shared = environments[0] if len(fingerprints) == 1 else environments[0] | {"fingerprint": None}
    return manifest | {"sessions": known, "environment": shared}
