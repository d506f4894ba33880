"""Where a run folder is written to in bad circumstances: one sentence, and no row that was stored is lost."""

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import StoreError
from harness.runs.parts import MANY, Parts
from harness.runs.store import MANIFEST, RunStore, read_run


def row(number, **more):
    return {"cell_id": f"{number:04d}", "cell_key": "k", "layer": 1, "iterations": number} | more


def stored(path):
    return sorted(read_run(path).table("layers")["cell_id"])


@pytest.fixture
def store(tmp_path):
    with RunStore.create(tmp_path / "run", {"matrix": {}}) as store:
        yield store


@pytest.fixture
def disk(tmp_path):
    """A small disk that can be made larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)], capture_output=True
        )

    if not hasattr(os, "geteuid") or os.geteuid() or mount("size=256k").returncode:
        pytest.skip("only root may mount a small disk")
    yield folder, lambda *options: mount("remount", *options)
    subprocess.run(["umount", "-l", str(folder)])


def fill(store, first):
    """Append one row at a time until the disk is full; how many rows went in."""
    for number in range(first, 10_000):
        try:
            store.append("layers", [row(number)])
        except StoreError as error:
            assert "No space left" in str(error) and "layers.parquet" in str(error)
            return number
    raise AssertionError("the disk is never full")


def test_a_full_disk_is_a_sentence_and_costs_no_row(disk):
    folder, remount = disk
    with RunStore.create(folder / "run", {"matrix": {}}) as store:
        count = fill(store, 0)
        assert count > 10 and not list(folder.rglob("*.tmp"))
        with pytest.raises(StoreError, match="No space left"):
            store.write_manifest(store.manifest | {"long": "x" * 1_000_000})
        with pytest.raises(StoreError, match="No space left"):
            store.compact()
    assert stored(folder / "run") == [f"{number:04d}" for number in range(count)]
    assert remount("size=4m").returncode == 0
    with RunStore.resume(folder / "run") as store:
        assert not store.damaged
        store.append("layers", [row(count)])
        store.compact()
    assert stored(folder / "run") == [f"{number:04d}" for number in range(count + 1)]


def test_a_read_only_disk_is_a_sentence(disk):
    folder, remount = disk
    with RunStore.create(folder / "run", {"matrix": {}}) as store:
        store.append("layers", [row(0)])
    assert remount("ro").returncode == 0
    for attempt in (lambda: RunStore.resume(folder / "run"), lambda: RunStore.create(folder / "other", {})):
        with pytest.raises(StoreError, match="cannot write to .*: Read-only file system"):
            attempt()
    assert stored(folder / "run") == ["0000"]


def test_a_limit_on_file_sizes_is_a_sentence(tmp_path):
    code = f"""
import resource; from harness.runs.store import RunStore; from harness.errors import StoreError
store = RunStore.create({str(tmp_path / "run")!r}, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
rows = [dict(cell_id=f"{{n:04d}}", cell_key="k", layer=1, wall_s=n ** 0.5) for n in range(5000)]
store.append("layers", rows[:1])
try:
    store.append("layers", rows[1:])
except StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot write to" in done.stdout and "File too large" in done.stdout, done.stderr
    assert stored(tmp_path / "run") == ["0000"] and not list(tmp_path.rglob("*.tmp"))


def test_a_deleted_manifest_leaves_the_rows_where_they_are(store):
    store.append("layers", [row(0)])
    manifest = (store.path / MANIFEST).read_bytes()
    store.close()
    (store.path / MANIFEST).unlink()
    with pytest.raises(StoreError, match=r"holds rows of a run \(layers\) but its manifest.json is gone"):
        RunStore.create(store.path, {"matrix": {}})
    for attempt in (RunStore.resume, read_run):
        with pytest.raises(StoreError, match="no manifest.json"):
            attempt(store.path)
    (store.path / MANIFEST).write_bytes(manifest)
    assert stored(store.path) == ["0000"]


def test_of_two_processes_that_start_a_run_one_gets_the_folder(tmp_path):
    code = (
        "import sys, time; from harness.runs.store import RunStore; from harness.errors import StoreError\n"
        "try:\n    store = RunStore.create(sys.argv[1], {}); print('mine'); sys.stdin.read()\n"
        "except StoreError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted((process.stdout.readline() for process in both), key=len)
    for process in both:
        process.communicate()
    assert said[0] == "mine\n" and ("another process" in said[1] or "holds a run already" in said[1])


def test_a_clock_that_is_set_back_changes_no_order(store, monkeypatch):
    times = iter([10**18, 10**18, 5, 10**18 + 1, 7])
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    for number in range(3):
        store.append("layers", [row(number)])
    store.close()
    with RunStore.resume(store.path) as resumed:
        for number in range(3, 5):
            resumed.append("layers", [row(number)])
        assert resumed.read("layers")["iterations"].tolist() == [0, 1, 2, 3, 4]
        assert len(read_run(resumed.path).parts("layers")) == 5


def test_merging_keeps_the_order_and_drops_nothing(store):
    for number in range(3 * MANY):
        store.append("layers", [row(number)])
        assert len(read_run(store.path).parts("layers")) < MANY
    assert store.read("layers")["iterations"].tolist() == list(range(3 * MANY))


def test_a_reader_goes_on_when_parts_are_merged_under_it(store, monkeypatch):
    for number in range(5):
        store.append("layers", [row(number)])
    batches = Parts._batches

    def merging(self, path, *arguments):
        monkeypatch.setattr(Parts, "_batches", batches)
        store.compact()
        return batches(self, path, *arguments)

    monkeypatch.setattr(Parts, "_batches", merging)
    assert stored(store.path) == [f"{number:04d}" for number in range(5)]


def test_killed_between_the_steps_of_a_merge_no_row_counts_twice(store, monkeypatch):
    for number in range(5):
        store.append("layers", [row(number)])
    monkeypatch.setattr(type(store.path), "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.compact()
    monkeypatch.undo()
    assert len(read_run(store.path).parts("layers")) == 6
    assert stored(store.path) == [f"{number:04d}" for number in range(5)]
    store.close()
    with RunStore.resume(store.path) as resumed:
        resumed.compact()
        assert len(resumed.read("layers")) == 5


def test_a_complete_row_counts_before_one_that_something_is_said_of(store):
    quality = {"cell_id": "a", "cell_key": "a", "status": "ok"}
    store.append("quality", [quality | {"error": "no comparison with real images"}])
    store.append("quality", [quality | {"fid": 2.0}])
    store.append("quality", [quality | {"status": "skipped", "error": "x"}])
    assert store.read("quality")["fid"].tolist() == [2.0]
    assert store.cell_ids("quality") == {"a"}
    store.append("quality", [{"cell_id": "b", "status": "skipped"}])
    assert store.cell_ids("quality") == {"a"}


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_flipped_bit_is_found_on_resume(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "run"
    with RunStore.create(path, {}) as store:
        store.append("layers", [row(number, wall_s=0.1 * number) for number in range(20)])
    (part,) = read_run(path).parts("layers")
    content = bytearray(part.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    part.write_bytes(content)
    with RunStore.resume(path) as store:
        assert len(store.damaged) == 1 and store.read("layers").empty


def test_columns_and_cells_are_read_alone(store):
    store.append("layers", [row(number, mode="jacobi") for number in range(10)])
    rows = store.run.rows("layers", ["mode", "iterations"], {"0003", "0007", "absent"})
    assert rows.column_names == ["mode", "iterations"]
    assert rows["iterations"].to_pylist() == [3, 7]
