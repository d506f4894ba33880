"""A job: units of one task that one process measures one after the other, and that process from the inside."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from harness.errors import HarnessError
from harness.flows.checkpoints import digest
from harness.measure.units import Attempt, Bench, Rows, Task, Unit
from harness.metrics.lock import device_lock
from harness.metrics.neighbours import neighbours
from harness.runs.environment import code_version, environment

CODE = code_version()
"""Of the code that was imported: what is changed on disk later is not what runs."""


@dataclass(frozen=True)
class Job:
    """Plain values, so that it travels to other processes and machines."""

    task: Task
    units: tuple[Unit, ...]  # in the order in which they are measured; those of a paired group are one job
    failed: Mapping[str, Attempt[Any]] = field(default_factory=dict)  # cells that failed while they were timed
    device: str = "cpu"
    threads: int | None = None  # of torch on the CPU, or None for as many as it takes there
    code: str = CODE  # version of flows and decoders that it must be measured with
    path: tuple[str, ...] = field(default_factory=lambda: tuple(filter(None, sys.path)))  # of the user's own modules

    @property
    def exclusive(self) -> bool:
        """Whether nothing else of ours may run on its device meanwhile: what is timed, and whatever runs on a GPU."""
        return self.task.exclusive or self.device == "cuda"


@dataclass(frozen=True)
class Outcome:
    """What a unit came to."""

    rows: Mapping[str, Rows]  # by table
    files: Mapping[str, bytes]  # what is written into the run folder, by relative path
    session: str  # names the process that measured it
    surroundings: Mapping[str, Any]  # of that process: environment, and when it started
    notes: Sequence[str] = ()  # sentences for the user


class JobProcess:
    """The process that a job is measured in, from the inside: called with a unit, it measures it.

    An exclusive job holds the lock of its device from the first unit to the end of the process. Raises HarnessError:
    the code or a checkpoint here is not the one that the job was planned with.
    """

    def __init__(self, job: Job) -> None:
        sys.path += [entry for entry in job.path if entry not in sys.path]
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        if job.code != CODE:
            raise HarnessError("a worker has another version of this harness than the driver; install the same there")
        subjects = [subject for unit in job.units for subject in unit.subjects]
        for path, wanted in {(subject.checkpoint_path, subject.checkpoint_digest) for subject in subjects}:
            if not Path(path).is_file() or digest(Path(path)) != wanted:
                raise HarnessError(f"a worker does not find the checkpoint of this run at '{path}'; put it there")
        self._job = job
        self._bench = Bench(uuid.uuid4().hex[:12], dict(job.failed))
        self._surroundings = {
            "environment": environment(job.device),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._held = ExitStack()
        if job.exclusive:
            self._held.enter_context(device_lock(job.device))
            self._surroundings["neighbours"] = neighbours()

    def __call__(self, unit: Unit, inputs: Sequence[bytes]) -> Outcome:
        bench = self._bench
        bench.inputs, bench.files, bench.notes = inputs, {}, []
        rows = self._job.task.measure(unit, bench)
        return Outcome(rows, bench.files, bench.session, self._surroundings, bench.notes)


def jobs_of(task: Task, units: Sequence[Unit], slots: int, **shared: Any) -> list[Job]:
    """Units as jobs, those with equal keys as one.

    Where only one job runs at a time (`slots`), all are one, so that what they share is made once; what is timed keeps
    a process of its own.
    """
    together: dict[Hashable, list[Unit]] = {}
    for unit in units:
        together.setdefault(task.together(unit) if slots > 1 or task.exclusive else None, []).append(unit)
    return [Job(task, tuple(members), **shared) for members in together.values()]
