"""In what state a device was while something was timed: clock, temperature, throttling, and what else ran on it.

Whatever a platform does not tell is None. NVIDIA's GPUs tell through nvidia-ml-py, where it is installed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from harness.metrics.neighbours import machine_seconds

_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Reading:
    """A device at one moment."""

    busy_s: float  # processor seconds that the whole machine has worked since it started
    own_s: float  # those of this process since it started
    at_s: float  # when
    waited_s: float | None  # for which threads of this process were ready and had no processor
    load: float | None  # processes that ran or waited to, mean over the last minute
    clock_hz: float | None = None  # of the GPU's multiprocessors, or the mean over CPU cores
    temperature_c: float | None = None  # of the GPU, or of the hottest CPU sensor
    reasons: tuple[str, ...] | None = None  # why its clock is held back now, where it tells
    throttles: int | None = None  # how often the CPU was held back since the system started
    foreign_processes: int | None = None  # besides this one that compute on the GPU


@contextmanager
def watch(device: str) -> Iterator[dict[str, Any]]:
    """The columns of `devices` for what runs meanwhile, filled in at its end; of ``"cuda"``, the first visible GPU.

    >>> with watch("cpu") as conditions:
    ...     total = sum(range(1000))
    >>> conditions["foreign_cpus"] >= 0
    True
    """
    conditions: dict[str, Any] = {}
    before = read(device)
    yield conditions
    conditions |= between(before, read(device))


def between(before: Reading, after: Reading) -> dict[str, Any]:
    """The columns of `devices` for what ran between two readings.

    `foreign_cpus` is the mean number of processors that others kept busy: what the machine worked, less what this
    process did, over the time. The system counts in hundredths of a second, so a short time says little.
    """
    foreign = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    seconds = max(after.at_s - before.at_s, 1e-9)
    waited = None
    if before.waited_s is not None and after.waited_s is not None:
        waited = max((after.waited_s - before.waited_s) / seconds, 0.0)  # a thread may have ended
    counts = [one.foreign_processes for one in (before, after) if one.foreign_processes is not None]
    reasons = sorted({*(before.reasons or ()), *(after.reasons or ())})
    if before.throttles is not None and after.throttles is not None and after.throttles > before.throttles:
        reasons.append("thermal")
    tells = before.reasons is not None or before.throttles is not None
    return {
        "clock_start_hz": before.clock_hz,
        "clock_end_hz": after.clock_hz,
        "temperature_start_c": before.temperature_c,
        "temperature_end_c": after.temperature_c,
        "throttled": bool(reasons) if tells else None,
        "throttle_reasons": ",".join(reasons) if tells else None,
        "load_start": before.load,
        "foreign_cpus": max(foreign / seconds, 0.0),
        "waited_cpus": waited,
        "foreign_processes": max(counts, default=None),
    }


def read(device: str) -> Reading:
    """Read a device now; takes about a millisecond."""
    here = {"clock_hz": _clock, "temperature_c": _temperature, "throttles": _throttles}
    facts = _gpu() if device == "cuda" else {name: find() for name, find in here.items()}
    load = None
    with suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
    return Reading(
        busy_s=machine_seconds(), own_s=time.process_time(), at_s=time.perf_counter(), waited_s=_waited(), load=load,
        **facts,
    )  # fmt: skip


def _waited() -> float | None:
    """Seconds that the scheduler of Linux let this process's threads wait; None where no kernel counts them."""
    with suppress(OSError, ValueError, IndexError):
        return sum(int(path.read_text().split()[1]) for path in Path("/proc/self/task").glob("*/schedstat")) / 1e9
    return None


def _clock() -> float | None:
    with suppress(OSError, NotImplementedError, AttributeError, RuntimeError):
        frequency = psutil.cpu_freq()
        return frequency.current * 1e6 if frequency and frequency.current else None
    return None


def _temperature() -> float | None:
    with suppress(OSError, AttributeError):
        sensors = psutil.sensors_temperatures()
        found = [entry.current for name in ("coretemp", "k10temp", "cpu_thermal") for entry in sensors.get(name, [])]
        return max(found, default=None)
    return None


def _throttles() -> int | None:
    """Times that any core or package of an Intel processor was too hot; None where the kernel does not count them."""
    with suppress(OSError, ValueError):
        counts = [int(path.read_text()) for path in _CPUS.glob("cpu*/thermal_throttle/*_throttle_count")]
        return sum(counts) if counts else None
    return None


def _gpu() -> dict[str, Any]:
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        try:
            properties = torch.cuda.get_device_properties(0)
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
            held = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            thermal = pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
            power = pynvml.nvmlClocksThrottleReasonSwPowerCap
            slowed = {  # that it is idle, or runs at the clock that was asked for, is no reason
                "thermal": thermal | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
                "power": power | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
                "hardware": pynvml.nvmlClocksThrottleReasonHwSlowdown,
            }
            return {
                "clock_hz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6,
                "temperature_c": float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
                "reasons": tuple(name for name, bit in slowed.items() if held & bit),
                "foreign_processes": max(len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1, 0),
            }
        finally:
            pynvml.nvmlShutdown()
    except (ImportError, AttributeError):
        return {}
    except pynvml.NVMLError:  # no driver, or a GPU that does not tell
        return {}
