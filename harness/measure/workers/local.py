"""From ``--on`` to an executor, and the one of this machine: every job in a fresh process, on CUDA one per GPU."""

from __future__ import annotations

import os
import queue
from collections.abc import Sequence
from dataclasses import replace

import torch

from harness.errors import HarnessError
from harness.measure.units import Unit
from harness.measure.workers.executor import Executor, Worker, WorkerLost
from harness.measure.workers.job import Job, JobProcess, Outcome
from harness.measure.workers.process import Conversation, FreshProcess, ProcessDied

PRELOAD = ("harness.measure.workers.job", "harness.measure.tasks.quality", "harness.measure.tasks.memory")


def executor(on: str = "local", workers: int = 1) -> Executor:
    """The executor that ``--on`` names: ``"local"``, ``"ray"``, ``"ray://host:port"`` or ``"ray:ADDRESS"``.

    `workers` are CPU jobs at a time on this machine, of those that are not timed. Another name, or a cluster that
    cannot be reached, is a `HarnessError`.
    """
    if on == "local":
        return Local(workers)
    kind, colon, address = on.partition(":")
    if kind != "ray" or (colon and not address.strip("/")):
        raise HarnessError(f"--on takes local, ray, ray://host:port or ray:ADDRESS, not '{on}'")
    from harness.measure.workers.ray_cluster import RayCluster  # what it needs may not be installed

    return RayCluster(on if address.startswith("//") else address or None)


class Local:
    """Jobs in fresh processes of this machine.

    What is timed on the CPU runs alone; other CPU jobs as many at a time as `workers` says. On CUDA each job has a GPU
    of its own, chosen before its process imports torch.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._gpus: queue.SimpleQueue[str] | None = None

    def prepare(self, device: str) -> None:
        if device == "cpu":
            FreshProcess(*PRELOAD).prepare()

    def slots(self, device: str, exclusive: bool) -> int:
        if device == "cuda":
            return len(_gpus())
        return 1 if exclusive else self.workers

    def open(self, job: Job) -> Worker:
        if job.device == "cpu":
            if self.workers > 1 and not job.exclusive and job.threads is None:  # they share the cores
                job = replace(job, threads=max(1, torch.get_num_threads() // self.workers))
            return _LocalWorker(FreshProcess(*PRELOAD), job)
        if self._gpus is None:
            self._gpus = queue.SimpleQueue()
            for gpu in _gpus():
                self._gpus.put(gpu)
        gpu = self._gpus.get()  # blocks until one is free
        return _LocalWorker(FreshProcess(environment={"CUDA_VISIBLE_DEVICES": gpu}), job, (self._gpus, gpu))

    def close(self) -> None:
        """See `Executor.close`."""


class _LocalWorker:
    def __init__(self, fresh: FreshProcess, job: Job, held: tuple[queue.SimpleQueue[str], str] | None = None) -> None:
        self._held = held
        try:
            self._process: Conversation = fresh.open(JobProcess, job)
        except ProcessDied as error:
            self._give_back()
            raise WorkerLost(str(error), begun=False) from error

    def measure(self, unit: Unit, inputs: Sequence[bytes]) -> Outcome:
        try:
            return self._process.ask(unit, inputs)
        except ProcessDied as error:
            raise WorkerLost(str(error)) from error

    def close(self, now: bool) -> None:
        self._process.close(now)
        self._give_back()

    def _give_back(self) -> None:
        if self._held:
            gpus, gpu = self._held
            self._held = None
            gpus.put(gpu)


def _gpus() -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` calls each GPU that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]
