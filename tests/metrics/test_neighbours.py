"""Who else computes on a machine, from scripted counters, and once beside real load."""

import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest

from harness.metrics import neighbours as looked

HERE = (psutil.Process().pid, 1.0)


@pytest.fixture
def machine(monkeypatch):
    """What two looks find: processor seconds of the machine, and name and seconds of every process."""

    def script(seconds, before, after):
        times, listed = iter(seconds), iter((before, after))
        monkeypatch.setattr(looked, "machine_seconds", lambda: next(times))
        monkeypatch.setattr(looked, "_processes", lambda: next(listed))
        monkeypatch.setattr(looked, "LOOK_S", 0.01)
        return looked.neighbours()

    return script


def test_what_this_process_does_is_no_neighbours(machine):
    found = machine((50.0, 50.018), {HERE: ("me", 3.0), (2, 1.0): ("cc1", 9.0)},
                    {HERE: ("me", 3.010), (2, 1.0): ("cc1", 9.005), (3, 2.0): ("new", 0.003)})  # fmt: skip
    assert found["cpus"] == pytest.approx(0.8)
    assert [(one["name"], one["cpus"]) for one in found["processes"]] == [("cc1", 0.5), ("new", 0.3)]
    assert found["cores"] == psutil.cpu_count()


def test_neighbours_that_cannot_be_seen_are_counted(machine):
    found = machine((50.0, 50.010), {HERE: ("me", 3.0)}, {HERE: ("me", 3.0)})
    assert found["cpus"] == pytest.approx(1.0) and found["processes"] == []
    (sentence,) = looked.told(found | {"cores": 1}, 1)
    assert "keep 1 of its 1 processors;" in sentence and "--threads" not in sentence


@pytest.mark.parametrize(
    ("cpus", "cores", "threads", "disturbs"),
    [
        (0.2, 2, 2, False),
        (0.9, 2, 2, True),
        (1.0, 2, 1, True),
        (0.5, 2, 1, False),
        (7.0, 16, 8, False),
        (7, 8, 8, True),
    ],
)
def test_only_who_takes_processors_that_are_needed_is_told_of(cpus, cores, threads, disturbs):
    notes = looked.told({"cpus": cpus, "cores": cores, "processes": []}, threads)
    assert bool(notes) == disturbs
    assert all(("--threads 1" in sentence) == (threads > 1) for sentence in notes)


@contextmanager
def busy(count):
    """So many processes that compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_what_is_read_here_is_plain():
    found = looked.neighbours()
    assert found["cpus"] >= 0 and all(one["cpus"] > 0 for one in found["processes"])
    assert len(found["processes"]) <= looked.NAMED


MATRIX = """
datasets = [{ name = "digits" }]
decoders = [{ name = "sequential" }, { name = "sejd" }]
grid = { batch_sizes = [4] }
timing = { rounds = 8 }
quality = { enabled = false }
residuals = { enabled = false }
memory = { enabled = false }
"""


@pytest.mark.slow
def test_beside_five_busy_processes_no_time_gets_a_verdict(tmp_path):
    """They belong to another process than the one that measures, as a neighbour's do."""
    (tmp_path / "speed.toml").write_text(MATRIX)

    def harness(*arguments):
        command = [sys.executable, "-m", "harness", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert harness("run", "speed.toml", "--out", "base").returncode == 0
    with busy(5):
        done = harness("run", "speed.toml", "--out", "new")
    assert done.returncode == 0 and "this machine is busy: other processes keep" in done.stderr.partition("timing")[0]
    assert "times doubtful, since the machine was not quiet" in done.stdout.replace("\n", " ")
    told = harness("compare", "base", "new")
    assert told.returncode == 0 and "2 cells: 2 not quiet; no regression" in told.stdout, told.stdout
    assert harness("compare", "base", "new", "--require-evidence").returncode == 1
