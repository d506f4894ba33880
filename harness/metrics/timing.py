"""Wall time of one call, with nothing beside it: synchronise, clock, call, synchronise, clock."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def synchronise(device: str) -> None:
    """Wait until the device has done what it was asked; a CPU always has."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], T], device: str) -> tuple[float, T]:
    """Seconds of one call, and what it returned.

    No garbage is collected meanwhile: a collection would land on whichever call happens to trigger it.

    >>> seconds, value = timed(lambda: 2 + 3, "cpu")
    >>> value
    5
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        synchronise(device)
        start = time.perf_counter()
        value = call()
        synchronise(device)
        return time.perf_counter() - start, value
    finally:
        if collecting:
            gc.enable()
