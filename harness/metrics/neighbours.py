"""What else a machine is busy with: told before something is timed, since no clock can tell it apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

LOOK_S = 0.25
"""Seconds that looking takes; the system counts in hundredths."""
BUSY = 0.3
"""Processors that others may keep busy before it is told."""
NAMED = 3
"""Processes that are named, at most."""


def neighbours() -> dict[str, Any]:
    """What others do on this machine now: `cpus`, the processors that they keep busy, of `cores`, and `processes`.

    The latter are names and processors of the busiest that can be seen from here, this one and those that it started
    aside.
    """
    before, worked = _processes(), machine_seconds()
    time.sleep(LOOK_S)
    after, foreign = _processes(), machine_seconds() - worked
    taken = {one: max(spent - before.get(one, (name, 0.0))[1], 0.0) for one, (name, spent) in after.items()}
    ours = {psutil.Process().pid, *(one.pid for one in psutil.Process().children(recursive=True))}
    foreign -= sum(spent for (pid, _), spent in taken.items() if pid in ours)
    others = sorted(((spent / LOOK_S, one) for one, spent in taken.items() if one[0] not in ours), reverse=True)
    return {
        "cpus": round(max(foreign / LOOK_S, 0.0), 2),
        "cores": psutil.cpu_count(),
        "processes": [
            {"name": after[one][0], "cpus": round(cpus, 2)} for cpus, one in others[:NAMED] if cpus >= BUSY / 2
        ],
    }


def notice(note: Callable[[str], object], threads: int) -> None:
    """Look, and note who disturbs what is timed with so many threads, if anybody does."""
    for sentence in told(neighbours(), threads):
        note(sentence)


def told(found: dict[str, Any], threads: int) -> list[str]:
    """A sentence on neighbours that disturb what is timed with so many threads; none where nobody does.

    >>> told({"cpus": 1.6, "cores": 2, "processes": [{"name": "cc1", "cpus": 0.97}]}, threads=2)[0]
    'this machine is busy: other processes keep 1.6 of its 2 processors (cc1 0.97); times are noisy, and rounds that \
were disturbed count in no verdict; --threads 1 suffers less'
    >>> told({"cpus": 0.1, "cores": 2, "processes": []}, threads=2)
    []
    """
    if found["cpus"] <= BUSY or found["cpus"] + threads + BUSY <= found["cores"]:
        return []
    named = ", ".join(f"{one['name']} {one['cpus']:g}" for one in found["processes"])
    return [
        f"this machine is busy: other processes keep {found['cpus']:g} of its {found['cores']} processors"
        f"{f' ({named})' if named else ''}; times are noisy, and rounds that were disturbed count in no verdict"
        f"{'; --threads 1 suffers less' if threads > 1 else ''}"
    ]


def machine_seconds() -> float:
    """Processor seconds that all processes of the machine have worked since it started."""
    cpu = psutil.cpu_times()
    guest = getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0)  # counted in user and nice already
    return sum(cpu) - cpu.idle - getattr(cpu, "iowait", 0.0) - guest


def _processes() -> dict[tuple[int, float], tuple[str, float]]:
    """Name and processor seconds by number and start of every process that can be seen."""
    found = {}
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            spent = one.cpu_times()
            found[one.pid, one.create_time()] = one.name(), spent.user + spent.system
    return found
