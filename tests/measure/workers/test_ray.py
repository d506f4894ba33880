"""A matrix on two real Ray nodes of this machine, one of which is killed while it measures."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pandas as pd
import psutil
import pytest
from test_runner import DETERMINISTIC, TABLES

from harness.errors import HarnessError
from harness.measure.workers.local import executor
from harness.runs.store import read_run
from harness.runs.tables import TABLES as SCHEMAS

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
SMALL = {"num_cpus": 1, "object_store_memory": 100_000_000}


@pytest.fixture
def cluster(monkeypatch):
    """A head that measures nothing and two nodes that do."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    head = {**SMALL, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster, [cluster.add_node(**SMALL) for _ in range(2)]
    cluster.shutdown()


def measuring(node):
    """The process that is a node, and whether one of its workers measures something now."""
    (raylet,) = node.all_processes["raylet"]
    for child in psutil.Process(raylet.process.pid).children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "RayWorker.measure" in " ".join(child.cmdline()):
                return raylet.process.pid, True
    return raylet.process.pid, False


@pytest.mark.slow
@needs_ray
def test_a_node_that_is_killed_costs_a_second_attempt_and_no_row(cluster, tiny_checkpoint, tmp_path):
    toml = tmp_path / "matrix.toml"
    toml.write_text(
        f'[[datasets]]\nname = "digits"\ncheckpoint = "{tiny_checkpoint}"\n'
        '[[decoders]]\nname = "sequential"\n[[decoders]]\nname = "ujd"\n'
        "[grid]\nbatch_sizes = [1, 2]\n[timing]\nrounds = 8\n[quality]\nnum_samples = 8\n[memory]\nenabled = false\n"
    )
    command = [sys.executable, "-m", "harness.cli", "run", str(toml), "--threads", "1", "--device", "cpu"]
    ray, nodes = cluster
    out = tmp_path / "ray"
    process = subprocess.Popen([*command, "--out", str(out), "--on", f"ray:{ray.address}"], stderr=subprocess.PIPE)
    deadline, busy = time.monotonic() + 600, []
    while not (len(list((out / "timings.parquet").glob("part-*"))) >= 2 and busy):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
        busy = [raylet for raylet, works in map(measuring, nodes) if works]
    os.kill(busy[0], signal.SIGKILL)
    _, told = process.communicate(timeout=1200)
    assert process.returncode == 0, told.decode()
    assert "it runs again" in told.decode()
    subprocess.run([*command, "--out", str(tmp_path / "local")], check=True, capture_output=True)
    there, here = read_run(out), read_run(tmp_path / "local")
    for table in TABLES:
        a, b = (run.table(table).set_index(list(SCHEMAS[table].key)).sort_index() for run in (there, here))
        assert a.index.is_unique
        pd.testing.assert_frame_equal(a[DETERMINISTIC[table]], b[DETERMINISTIC[table]], rtol=1e-5, atol=1e-6)
    attempts = pd.concat([there.table(table)["attempts"] for table in ("timings", "layers", "quality")])
    assert attempts.max() == 2 and set(here.table("timings")["attempts"]) == {1}
    print(there.table("timings").groupby(["label", "batch_size", "attempts"])["round"].agg(list).to_string())


def test_what_on_takes():
    for wrong in ("rai", "ray:", "ray://", "local:1"):
        with pytest.raises(HarnessError, match="--on takes"):
            executor(wrong)


@needs_ray
def test_a_cluster_that_is_not_there():
    with pytest.raises(HarnessError, match="no Ray cluster at '127.0.0.1:1'"):
        executor("ray:127.0.0.1:1")


def test_without_ray_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HarnessError, match=r"not installed.*\[ray\]"):
        executor("ray")
