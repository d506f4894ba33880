"""One lock per device and machine: what is timed is alone, also among processes that know nothing of each other."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import HarnessError

WAKE_EVERY_S = 1.0
"""A process that waits sleeps, and looks this often: far too seldom to disturb what it waits for."""


@contextmanager
def device_lock(device: str) -> Iterator[None]:
    """Hold the lock of ``"cpu"``, all cores together being one, or ``"cuda"``, the first visible GPU; waits its turn.

    The system gives it back when the process ends, however it ends.
    """
    folder = Path(tempfile.gettempdir()) / "harness-locks"
    try:
        folder.mkdir(exist_ok=True)
        with suppress(PermissionError):  # of another user, who has done it
            folder.chmod(0o777)
        lock = FileLock(folder / f"{_name(device)}.lock", mode=0o666, poll_interval=WAKE_EVERY_S)
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            print(f"another process times something on this {device.upper()}; waiting for it", file=sys.stderr)
            held = lock.acquire()
    except OSError as error:
        raise HarnessError(f"cannot lock the device through '{folder}': {error.strerror or error}") from error
    with held:
        yield


def _name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return f"cuda-{torch.cuda.get_device_properties(0).uuid}"
