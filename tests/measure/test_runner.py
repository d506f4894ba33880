"""A matrix from start to end on a tiny flow: what is measured, what a failure costs, what a resume repeats."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import StoreError
from harness.measure.matrix import Matrix, load_matrix
from harness.measure.run_matrix import run_matrix
from harness.runs.store import RunStore, read_run
from harness.runs.tables import TABLES as SCHEMAS

TABLES = ("cells", "timings", "layers", "residuals", "quality", "memory", "failures")
DETERMINISTIC = {
    "cells": ["label", "tau", "options", "num_tokens", "num_layers", "token_dim"],
    "timings": ["position", "status"],
    "layers": ["mode", "iterations", "converged", "token_evaluations", "depth", "final_residual", "flags"],
    "residuals": ["residual", "error_inf", "error_rms", "error_rms_p90"],
    "quality": ["fid", "kid", "num_samples", "deviation_rmse", "deviation_max", "reconstruction_mse", "status"],
    "memory": ["weights_bytes", "cache_bytes", "status"],
    "failures": ["status", "error"],
}


class Quiet:
    """A reporter that remembers, and that interrupts as Ctrl-C would before the unit with a given number."""

    def __init__(self, stop=None):
        self.stop, self.units, self.notes = stop, [], []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def begin(self, total):
        self.total = total

    def unit(self, work, title):
        if len(self.units) == self.stop:
            raise KeyboardInterrupt
        self.units.append((work, title))

    def advance(self, cost):
        self.total -= cost

    def note(self, sentence):
        self.notes.append(sentence)


@pytest.fixture(scope="module")
def make(tiny_checkpoint):
    def make(decoders=("sequential", "ujd"), **more):
        raw = {
            "name": "tiny",
            "device": "cpu",
            "datasets": [{"name": "digits", "checkpoint": str(tiny_checkpoint)}],
            "decoders": [{"name": name} for name in decoders],
            "grid": {"batch_sizes": [1, 2]},
            "timing": {"rounds": 3},
            "quality": {"num_samples": 4},
            "memory": {"enabled": False},
        }
        return Matrix.model_validate(raw | more)

    return make


def run(matrix, out, stop=None, resume=False, **options):
    reporter = Quiet(stop)
    return run_matrix(matrix, out, reporter, resume=resume, threads=1, **options), reporter


def assert_same_rows(one, other):
    for table in TABLES:
        a, b = (run.table(table).set_index(list(SCHEMAS[table].key)).sort_index() for run in (one, other))
        assert a.index.is_unique and b.index.is_unique
        pd.testing.assert_frame_equal(a[DETERMINISTIC[table]], b[DETERMINISTIC[table]], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def undisturbed(make, tmp_path_factory):
    done, reporter = run(make(), tmp_path_factory.mktemp("runs") / "undisturbed")
    assert reporter.total == pytest.approx(0)
    return SimpleNamespace(run=done, units=reporter.units)


def test_every_cell_has_its_rows(undisturbed):
    tables = {name: undisturbed.run.table(name) for name in TABLES}
    assert len(tables["cells"]) == 4 and set(tables["cells"]["label"]) == {"sequential", "ujd"}
    assert len(tables["timings"]) == 4 * 3 and len(tables["layers"]) == 4 * 2 and len(tables["quality"]) == 4
    assert tables["failures"].empty and tables["memory"].empty
    timings = tables["timings"]
    assert (timings["status"] == "ok").all() and (timings[["wall_s", "encode_s"]] > 0).all(axis=None)
    assert (timings["forward_ratio"] == timings["wall_s"] / timings["encode_s"]).all()
    assert (timings["images_per_s"] == timings["batch_size"] / timings["wall_s"]).all()
    calls = tables["residuals"].groupby(["cell_id", "layer"])["iteration"].max()
    depth = tables["layers"].set_index(["cell_id", "layer"])["depth"]
    pd.testing.assert_series_equal(calls.sort_index(), depth.sort_index(), check_names=False)


def test_rounds_are_paired_and_shuffled(undisturbed):
    timings = undisturbed.run.table("timings")
    for _, pair in timings.groupby(["group_id", "round"]):
        assert pair["session"].nunique() == 1 and pair["encode_s"].nunique() == 1
        assert pair["position"].is_unique and set(pair["position"]) <= {0, 1, 2}  # the encode has the third place
    orders = timings.pivot_table(index=["group_id", "round"], columns="label", values="position")
    assert (orders["sequential"] < orders["ujd"]).nunique() == 2


def test_sequential_is_its_own_reference(undisturbed):
    quality = undisturbed.run.table("quality").merge(
        undisturbed.run.table("cells")[["cell_id", "decoder"]], on="cell_id"
    )
    exact = quality[quality["decoder"] == "sequential"]
    assert (exact["deviation_max"] < 1e-5).all() and (exact["reconstruction_mse"] < 1e-8).all()
    assert (quality[quality["decoder"] == "ujd"]["deviation_rmse"] > 1e-4).all()
    assert quality["fid_features"].nunique() == 1 and quality["fid"].notna().all()
    assert sorted(path.stem for path in (undisturbed.run.path / "samples").iterdir()) == sorted(quality["cell_id"])


def test_the_manifest_tells_what_ran_where(undisturbed):
    manifest = undisturbed.run.manifest
    assert manifest["matrix"]["quality"]["max_deviation"] == 0.15
    assert set(manifest["sessions"]) > set(undisturbed.run.table("timings")["session"])
    assert undisturbed.run.table("timings").groupby("session")["group_id"].nunique().eq(1).all()
    prints = {session["environment"]["fingerprint"] for session in manifest["sessions"].values()}
    assert prints == {manifest["environment"]["fingerprint"]}
    assert len(manifest["environment"]["fingerprint"]) == 12 and manifest["checkpoints"]["tiny.safetensors"]


def test_a_run_begun_before_a_key_was_there_is_resumed(make, undisturbed, tmp_path):
    """Of a matrix, where the key has its default: nothing is measured again."""
    out = shutil.copytree(undisturbed.run.path, tmp_path / "old")
    manifest = json.loads((out / "manifest.json").read_text())
    old = manifest["matrix"]
    del old["residuals"], old["timing"]["warmup"], old["grid"]["denoise"], old["datasets"][0]["size"], old["include"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    finished, reporter = run(make(), out, resume=True)
    assert reporter.units == []
    assert_same_rows(finished, undisturbed.run)
    with pytest.raises(StoreError, match=r"matrix\.timing\.warmup"):
        run(make(timing={"rounds": 3, "warmup": 2}), out, resume=True)


def test_who_else_computes_is_told_before_anything_is_timed_and_stored(make, tmp_path, monkeypatch):
    found = {"cpus": 1.9, "cores": 2, "processes": [{"name": "cc1", "cpus": 0.97}]}
    monkeypatch.setattr("harness.metrics.neighbours.neighbours", lambda: found)
    reporter = Quiet(stop=0)
    with pytest.raises(KeyboardInterrupt):
        run_matrix(make(), tmp_path / "run", reporter, threads=1)
    assert any("busy: other processes keep 1.9 of its 2 processors (cc1 0.97)" in note for note in reporter.notes)
    finished, reporter = run(make(grid={"batch_sizes": [1]}, quality={"enabled": False}), tmp_path / "other")
    sessions, timed = finished.manifest["sessions"], finished.table("timings")["session"].unique()
    assert {name for name, one in sessions.items() if "neighbours" in one} >= {*timed}
    assert all(sessions[name]["neighbours"]["cpus"] >= 0 for name in timed)
    _, reporter = run(make(grid={"batch_sizes": [1]}, quality={"enabled": False}), tmp_path / "other", resume=True)
    assert not any("busy" in note for note in reporter.notes)  # nothing was left to time


@settings(deadline=None, max_examples=2, suppress_health_check=list(HealthCheck))  # a run takes seconds
@given(data=st.data())
def test_an_interrupted_run_resumed_has_the_rows_of_an_undisturbed_one(make, undisturbed, tmp_path_factory, data):
    out = tmp_path_factory.mktemp("runs") / "interrupted"
    total = len(undisturbed.units)
    units = []
    for stop in data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=2)):
        reporter = Quiet(stop)
        with suppress(KeyboardInterrupt):
            run_matrix(make(), out, reporter, resume=True, threads=1)
        units += reporter.units
    finished, reporter = run(make(), out, resume=True)
    assert_same_rows(finished, undisturbed.run)
    assert units + reporter.units == undisturbed.units  # each once, in order
    again, reporter = run(make(), out, resume=True)
    assert reporter.units == []
    assert_same_rows(again, finished)
    assert again.manifest == finished.manifest


def test_a_damaged_part_is_measured_again_and_the_user_told(make, undisturbed, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(make(), out, stop=5)
    bad = read_run(out).parts("timings")[0]
    bad.write_bytes(bad.read_bytes()[:100])
    finished, reporter = run(make(), out, resume=True)
    assert_same_rows(finished, undisturbed.run)
    assert [sentence for sentence in reporter.notes if "damaged" in sentence]


def test_a_failing_cell_is_a_row_and_the_matrix_goes_on(make, tmp_path):
    names = (
        "sequential",
        *(f"broken_decoders:{name}" for name in ("Raises", "OutOfMemory", "NotFinite", "FailsWatched")),
    )
    matrix = make(names, grid={"batch_sizes": [2]}, memory={"enabled": True})
    finished, reporter = run(matrix, tmp_path / "run")
    label = finished.table("cells").set_index("cell_id")["label"].str.removeprefix("broken_decoders:")

    def outcome(table, column="status"):
        frame = finished.table(table)
        return frame.groupby(frame["cell_id"].map(label))[column].unique().map(set).to_dict()

    fine = {"ok"}
    assert outcome("timings") == {
        "sequential": fine,
        "Raises": {"failed"},
        "OutOfMemory": {"out-of-memory"},
        "NotFinite": {"non-finite"},
        "FailsWatched": fine,
    }
    assert outcome("timings", "error")["Raises"] == {"ValueError: layer 1 is not to my liking"}
    assert finished.table("timings").groupby("cell_id")["round"].nunique().eq(3).all()
    assert outcome("quality") == {
        name: fine if name in ("sequential", "FailsWatched") else {"skipped"} for name in label
    }
    assert outcome("failures", "pass")["FailsWatched"] == {"residuals"}
    assert outcome("memory")["FailsWatched"] == {"failed"}  # its caches are counted through a tap
    assert set(finished.table("layers")["cell_id"].map(label)) == {"sequential", "FailsWatched"}
    tracebacks = [path.read_text() for path in (finished.path / "failures").iterdir()]
    assert any("not to my liking" in text and "Traceback" in text for text in tracebacks)
    assert any("not to my liking" in sentence for sentence in reporter.notes)
    _, reporter = run(matrix, tmp_path / "run", resume=True)
    assert [work for work, _ in reporter.units if work != "quality" and work != "memory"] == []


def test_memory_is_measured_in_processes_of_its_own(make, tmp_path):
    matrix = make(grid={"batch_sizes": [4]}, memory={"enabled": True}, quality={"enabled": False})
    finished, _ = run(matrix, tmp_path / "run")
    memory = finished.table("memory").merge(finished.table("cells"), on="cell_id").set_index("decoder")
    assert (memory["status"] == "ok").all() and memory["method"].str.startswith("rss").all()
    assert (memory["peak_bytes"] >= 0).all()
    per_sample = 1 * 2 * 1 * 16 * 64 * 4  # layers in a block x (keys, values) x heads x L x head_dim x float32
    assert memory["cache_bytes"].to_dict() == {"sequential": 4 * per_sample, "ujd": 0}
    assert memory["weights_bytes"].nunique() == 1 and (memory["weights_bytes"] > 4 * 64 * 64 * 12 * 2).all()


def test_a_dataset_that_is_not_there_costs_its_fid_and_nothing_else(make, tiny_checkpoint, tmp_path):
    matrix = make(datasets=[{"name": "cifar10-jpeg", "checkpoint": str(tiny_checkpoint), "root": str(tmp_path)}])
    finished, reporter = run(matrix, tmp_path / "run")
    quality = finished.table("quality")
    assert quality["fid"].isna().all() and quality["deviation_rmse"].notna().all()
    assert quality["error"].str.contains("no comparison with real images").all()
    assert any("no comparison with real images" in sentence for sentence in reporter.notes)


def test_small_batches_rest_on_fewer_samples_and_have_no_fid(make, tmp_path):
    finished, _ = run(make(quality={"num_samples": 4, "max_batches": 2}), tmp_path / "run")
    quality = finished.table("quality").merge(finished.table("cells")[["cell_id", "batch_size"]], on="cell_id")
    assert quality.groupby("batch_size")["num_samples"].unique().map(list).to_dict() == {1: [2], 2: [4]}
    assert quality.groupby("batch_size")["fid"].count().to_dict() == {1: 0, 2: 2}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"grid": {"batch_sizes": [1, 4]}}, "matrix.grid.batch_sizes"),
        ({"timing": {"rounds": 4}}, "matrix.timing.rounds"),
        ({"decoders": ["ujd"]}, "matrix.decoders"),
    ],
)
def test_a_run_of_another_matrix_is_not_added_to(make, undisturbed, change, difference):
    with pytest.raises(StoreError, match=difference):
        run(make(**change), undisturbed.run.path, resume=True)
    RunStore.resume(undisturbed.run.path).close()  # the lock was given back


def test_a_run_of_other_code_is_not_added_to(make, undisturbed, monkeypatch):
    monkeypatch.setattr("harness.measure.expand.source_version", lambda cls: "another")
    with pytest.raises(StoreError, match="other code"):
        run(make(), undisturbed.run.path, resume=True)


def test_a_finished_run_is_not_started_over(make, undisturbed):
    with pytest.raises(StoreError, match="--resume"):
        run(make(), undisturbed.run.path)


def test_kill_9_at_any_moment_loses_at_most_the_unit_in_flight(make, tiny_checkpoint, tmp_path):
    toml = tmp_path / "killed.toml"
    toml.write_text(
        f'device = "cpu"\n[[datasets]]\nname = "digits"\ncheckpoint = "{tiny_checkpoint}"\n'
        '[[decoders]]\nname = "sequential"\n[[decoders]]\nname = "ujd"\n'
        "[grid]\nbatch_sizes = [1, 2]\n[timing]\nrounds = 8\n[quality]\nnum_samples = 4\n[memory]\nenabled = false\n"
    )
    command = [sys.executable, "-m", "harness.cli", "run", str(toml), "--threads", "1"]

    def stored(out):
        return sum(len(list((out / f"{table}.parquet").glob("part-*"))) for table in TABLES)

    killed, kept = tmp_path / "killed", 0
    for wanted in (2, 13):  # many more moments are in tests/faults
        process = subprocess.Popen([*command, "--out", str(killed), "--resume"], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 600
        while process.poll() is None and stored(killed) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert stored(killed) >= max(wanted, kept)
        kept = stored(killed)
        read_run(killed).table("timings")  # every part is whole
    done = subprocess.run([*command, "--out", str(killed), "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "speed-up" in done.stdout
    undisturbed, _ = run(load_matrix(str(toml)), tmp_path / "undisturbed")
    assert_same_rows(read_run(killed), undisturbed)
    assert read_run(killed).table("timings")["session"].nunique() > 1
