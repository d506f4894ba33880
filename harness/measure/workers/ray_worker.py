"""What runs on the machines of a Ray cluster; nothing heavy: the GPU is chosen before torch is imported."""

from __future__ import annotations

import os
import pickle
import select
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


class RayWorker:
    """An actor that measures the units of one job."""

    def __init__(self, job: bytes) -> None:
        self._job = job
        self._process: Any = None
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def ready(self) -> None:
        """Answered once the actor has its device."""

    def measure(self, unit: bytes, inputs: Sequence[bytes]) -> tuple[bool, Any]:
        try:
            if self._process is None:
                from harness.measure.workers.job import JobProcess

                self._process = JobProcess(pickle.loads(self._job))
            return True, self._process(pickle.loads(unit), inputs)
        except Exception as error:  # a failed constructor or call would look like a lost worker
            return False, (type(error).__name__, str(error))


def _end_with(node: int) -> None:
    """End this process with the one that manages its node: a worker that outlived it would keep its device locked."""
    if hasattr(os, "pidfd_open"):
        with suppress(ProcessLookupError):
            select.select([os.pidfd_open(node)], [], [])  # blocks
        os._exit(1)
