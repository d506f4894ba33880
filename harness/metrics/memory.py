"""Peak memory of one decode: what the device's allocator counts, or the resident memory of a process of its own."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch


class Peak(NamedTuple):
    """Bytes that a call needed at most beyond what was held before it, and how they were found."""

    bytes: int
    method: str


def cuda_peaks(call: Callable[[], Any]) -> list[Peak]:
    """Peaks of torch's CUDA allocator during a call, weights included: ``cuda_allocated`` and ``cuda_reserved``."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return [
        Peak(torch.cuda.max_memory_allocated(), "cuda_allocated"),
        Peak(torch.cuda.max_memory_reserved(), "cuda_reserved"),
    ]


def resident_peak(call: Callable[[], Any]) -> Peak:
    """Peak resident memory of this process during a call, less that before it.

    Run it in a fresh process: memory that an earlier call freed but the allocator kept would hide in the difference.

    Returns:
        ``rss``: from the kernel's high-water mark, reset just before (Linux). ``rss_since_start`` where it cannot be
        reset: the mark of the whole process, so a lower peak than that of its start-up reads as 0.
    """
    gc.collect()
    _trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _resident_peak_since_start(call)
    before = _high_water()
    call()
    return Peak(_high_water() - before, "rss")


def _resident_peak_since_start(call: Callable[[], Any]) -> Peak:
    before = psutil.Process().memory_info().rss
    call()
    return Peak(max(_highest_ever() - before, 0), "rss_since_start")


def _trim() -> None:
    """Ask glibc to return freed memory to the system, so that it is not counted as held before the call."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library: the baseline is what it is
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _high_water() -> int:
    """Of this process's resident memory, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def _highest_ever() -> int:
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
