"""Jobs on the workers of an executor: which runs where and when, and once more when its worker is lost."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.measure.units import Unit
from harness.measure.workers.executor import Executor, Worker, WorkerLost
from harness.measure.workers.job import Job, Outcome

RETRIES = 2
"""Times that a job whose worker was lost is run again."""
UNOPENED = 10
"""Times that a job may find no worker before it counts as lost."""


@dataclass(frozen=True)
class Started:
    """A unit is being measured."""

    job: Job
    unit: Unit


@dataclass(frozen=True)
class Finished:
    """A unit was measured; its worker goes on when the next event is asked for."""

    job: Job
    unit: Unit
    outcome: Outcome
    attempts: int  # times that its job was begun, 1 when nothing was lost


@dataclass(frozen=True)
class Lost:
    """A worker was lost."""

    job: Job
    reason: str
    again: bool  # whether what is left of its job runs again


Event = Started | Finished | Lost


@dataclass
class _Attempted:
    job: Job
    attempts: int = 1
    unopened: int = 0


@dataclass
class _Message:
    """An event on its way to the caller; `heard` is set when the caller has dealt with it."""

    event: Event
    heard: threading.Event = field(default_factory=threading.Event)


def dispatch(executor: Executor, jobs: Sequence[Job], folder: Path, retries: int) -> Generator[Event]:
    """Run jobs, as many at once as the executor has slots, and tell of every unit.

    A worker waits until its last event was dealt with, so that storing rows never runs beside what the same worker
    measures next. Raises HarnessError: whatever a worker raised; everything else is stopped.
    The jobs are for one kind of device, those at the front are begun first; `folder` holds the files that units name.
    A job whose worker was lost is run again up to `retries` times, with the units that are missing.
    """
    if jobs:
        yield from _Dispatcher(executor, jobs, folder, retries).events()


class _Dispatcher:
    def __init__(self, executor: Executor, jobs: Sequence[Job], folder: Path, retries: int) -> None:
        self.executor, self.folder, self.retries = executor, folder, retries
        self.waiting = deque(_Attempted(job) for job in jobs)
        self.unfinished = len(jobs)
        self.changed = threading.Condition()
        self.messages: queue.Queue[_Message | BaseException | None] = queue.Queue()  # None: a slot has ended
        self.stopped = False
        self.workers: set[Worker] = set()
        slots = executor.slots(jobs[0].device, any(job.exclusive for job in jobs))
        self.slots = min(len(jobs), slots)

    def events(self) -> Generator[Event]:
        for _ in range(self.slots):
            threading.Thread(target=self._slot, daemon=True).start()
        running = self.slots
        try:
            while running:
                message = self.messages.get()  # blocks
                if isinstance(message, BaseException):
                    raise message
                if message is None:
                    running -= 1
                else:
                    yield message.event
                    message.heard.set()
        finally:
            self._stop()

    def _stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.waiting.clear()
            self.changed.notify_all()
            workers = list(self.workers)
        for worker in workers:
            worker.close(now=True)

    def _slot(self) -> None:
        try:
            while tried := self._next():
                self._run(tried)
        except BaseException as error:  # the caller's thread raises it
            if not self.stopped:
                self.messages.put(error)
        self.messages.put(None)

    def _next(self) -> _Attempted | None:
        """The next job; waits while others may come back, and gives None when all are done."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or self.waiting or not self.unfinished)
            return self.waiting.popleft() if self.waiting else None

    def _run(self, tried: _Attempted) -> None:
        left = deque(tried.job.units)
        try:
            worker = self.executor.open(tried.job)
            with self.changed:
                self.workers.add(worker)
            try:
                while left and not self.stopped:
                    self._tell(Started(tried.job, left[0]))
                    inputs = [(self.folder / name).read_bytes() for name in left[0].inputs]
                    outcome = worker.measure(left[0], inputs)
                    self._tell(Finished(tried.job, left.popleft(), outcome, tried.attempts))
            finally:
                with self.changed:
                    self.workers.discard(worker)
                worker.close(now=bool(left))
        except WorkerLost as lost:
            self._again(tried, tuple(left), lost)
        else:
            self._done()

    def _again(self, tried: _Attempted, left: tuple[Unit, ...], lost: WorkerLost) -> None:
        if self.stopped:
            return
        attempts, unopened = tried.attempts + lost.begun, tried.unopened + (not lost.begun)
        again = attempts <= self.retries + 1 and unopened <= UNOPENED
        self._tell(Lost(tried.job, str(lost), again))
        if again:
            with self.changed:
                self.waiting.append(_Attempted(replace(tried.job, units=left), attempts, unopened))
                self.changed.notify()
        else:
            self._done()

    def _done(self) -> None:
        with self.changed:
            self.unfinished -= 1
            self.changed.notify_all()

    def _tell(self, event: Event) -> None:
        message = _Message(event)
        self.messages.put(message)
        while not self.stopped and not message.heard.wait(timeout=1):  # it is dealt with in milliseconds
            pass
