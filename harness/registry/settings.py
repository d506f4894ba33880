"""The settings of a process that foreign code may change under everybody else: kept around its import and its calls."""

from __future__ import annotations

import gc
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


def _read(get: Callable[[], Any]) -> Any:
    with suppress(RuntimeError, OSError, AttributeError):  # as of a folder that is gone, or a version without it
        return get()
    return None


def _flushes_denormals() -> bool:
    return float(torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1) == 0


def _handlers() -> dict[int, Any]:
    """Of signals that end a process; only the main thread can set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _filter(filters: list[Any]) -> None:
    warnings.resetwarnings()  # lets the registries of modules notice
    warnings.filters[:] = filters  # type: ignore[index]


def _environ(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _flags(module: Any, *names: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Reads and sets attributes of a module of torch."""

    def put(values: list[Any]) -> None:
        for name, value in zip(names, values, strict=True):
            setattr(module, name, value)

    return lambda: [getattr(module, name) for name in names], put


FILTERS = "the filters of warnings"
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the number of torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    "whether gradients are recorded": (torch.is_grad_enabled, torch.set_grad_enabled),
    "whether algorithms are deterministic": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda values: torch.use_deterministic_algorithms(values[0], warn_only=values[1]),
    ),
    "the precision of float32 products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "whether denormal numbers are flushed": (_flushes_denormals, torch.set_flush_denormal),
    "autocast": (
        lambda: [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        lambda values: [torch.set_autocast_enabled(*pair) for pair in zip(("cpu", "cuda"), values, strict=True)],
    ),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "the settings of cuDNN": _flags(torch.backends.cudnn, "enabled", "benchmark", "deterministic", "allow_tf32"),
    "the settings of oneDNN": _flags(torch.backends.mkldnn, "enabled"),
    "whether garbage is collected": (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    FILTERS: (lambda: list(warnings.filters), _filter),
    "how signals are handled": (
        _handlers,
        lambda handlers: [signal.signal(*pair) for pair in handlers.items()],
    ),
    "environment variables": (lambda: dict(os.environ), _environ),
    "the working folder": (os.getcwd, os.chdir),
    "the processors that it may use": (
        lambda: os.sched_getaffinity(0),
        lambda processors: os.sched_setaffinity(0, processors),
    ),
}
"""What foreign code may change under everybody else: how each is read, and set."""


@contextmanager
def settings_kept() -> Iterator[list[str]]:
    """Put back what the block changes of the process, and name it in the list: one decoder's settings are no other's.

    Filters of warnings are not named, since the first import of many a library changes them.
    Torch's random numbers go on from where they were; that they were drawn is not named, that they were seeded is.
    """
    changed: list[str] = []
    before = {name: _read(get) for name, (get, _) in SETTINGS.items()}
    seed, numbers = torch.initial_seed(), torch.get_rng_state()
    try:
        yield changed
    finally:
        for name, (get, put) in SETTINGS.items():
            if _read(get) != before[name]:
                changed += [] if name == FILTERS else [name]
                with suppress(RuntimeError, OSError, ValueError, TypeError):
                    put(before[name])
        if torch.initial_seed() != seed:
            changed.append("the seed of torch")
        torch.set_rng_state(numbers)
