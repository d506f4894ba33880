"""The one interface of all executors: how many jobs run at once, and a worker for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from harness.errors import HarnessError
from harness.measure.units import Unit
from harness.measure.workers.job import Job, Outcome


class WorkerLost(HarnessError):
    """What measured a job is gone, by no fault of what it measured that is known: the job can run again.

    The reason has no full stop. A worker that never came up, so that the job had not `begun`, costs it no attempt.
    """

    def __init__(self, reason: str, begun: bool = True) -> None:
        super().__init__(reason)
        self.begun = begun


class Worker(Protocol):
    """A process that holds a device and measures the units of one job."""

    def measure(self, unit: Unit, inputs: Sequence[bytes]) -> Outcome:
        """Block until the unit is measured, given the content of the files that it names.

        Raises WorkerLost: the process, or the machine it ran on, is gone.
        """
        ...

    def close(self, now: bool) -> None:
        """Give the device back; with `now`, in the middle of whatever runs."""
        ...


class Executor(Protocol):
    """Where jobs run."""

    def prepare(self, device: str) -> None:
        """Begin with what takes time before the first job on a kind of device; returns at once."""
        ...

    def slots(self, device: str, exclusive: bool) -> int:
        """How many jobs on a kind of device may run at once, exclusive ones or others; at least 1."""
        ...

    def open(self, job: Job) -> Worker:
        """A worker for a job, alone on its device where the job is exclusive; blocks until one is free.

        Raises WorkerLost: none came up; HarnessError: there is nowhere to run it.
        """
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...
