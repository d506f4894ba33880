import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError, StoreError
from harness.files import LOCK
from harness.runs.store import MANIFEST, RunStore, read_run
from harness.runs.tables import TABLES


def layer_row(cell, layer, iterations=1):
    return {"cell_id": cell, "cell_key": cell, "layer": layer, "iterations": iterations, "converged": True}


@pytest.fixture
def store(tmp_path):
    with RunStore.create(tmp_path / "run", {"matrix": {}}) as store:
        yield store


def test_every_table_has_a_key_of_its_own_columns():
    assert all(table.key and set(table.key) <= set(table.names) for table in TABLES.values())


def test_what_is_appended_is_read_back_by_anyone(store):
    store.append("layers", [layer_row("a", 1), layer_row("a", 2)])
    store.append("layers", [layer_row("b", 1)])
    store.append("layers", [])
    run = read_run(store.path)
    assert run.manifest["matrix"] == {}
    assert run.table("layers")[["cell_id", "layer"]].values.tolist() == [["a", 1], ["a", 2], ["b", 1]]
    assert len(pd.read_parquet(store.path / "layers.parquet")) == 3
    assert len(read_run(store.path).parts("layers")) == 2


def test_an_absent_table_is_empty_and_typed(store):
    frame = store.read("timings")
    assert frame.empty and frame["wall_s"].dtype == float and list(frame.columns) == TABLES["timings"].names
    with pytest.raises(HarnessError, match="did you mean 'timings'"):
        store.read("timing")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), max_size=4), max_size=6))
def test_no_key_is_read_twice_and_none_is_lost(tmp_path_factory, appends):
    with RunStore.create(tmp_path_factory.mktemp("run"), {}) as store:
        for rows in appends:
            store.append("layers", [layer_row(*row) for row in rows])
        wanted = {row for rows in appends for row in rows}
        for _ in range(2):
            found = list(store.read("layers")[["cell_id", "layer"]].itertuples(index=False, name=None))
            assert len(found) == len(set(found)) and set(found) == wanted
            store.compact()
        assert len(read_run(store.path).parts("layers")) <= 1 or sum(map(bool, appends)) <= 1


def test_a_measured_row_counts_before_a_skipped_one(store):
    row = {"cell_id": "a", "cell_key": "a"}
    store.append("quality", [row | {"status": "skipped", "error": "no data"}])
    store.append("quality", [row | {"status": "ok", "fid": 3.0}])
    assert store.read("quality")["fid"].tolist() == [3.0]


@pytest.mark.parametrize("row", [{"cell": 1}, {"layer": "first"}, {"iterations": 1.5}])
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(store, row):
    with pytest.raises(HarnessError, match="layers"):
        store.append("layers", [layer_row("a", 1), layer_row("a", 2) | row])
    assert store.read("layers").empty


def test_a_folder_that_holds_something_is_left_alone(store, tmp_path):
    with pytest.raises(StoreError, match="--resume"):
        RunStore.create(store.path, {})
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for attempt in (lambda: RunStore.create(foreign, {}), lambda: RunStore.resume(foreign), lambda: read_run(foreign)):
        with pytest.raises(StoreError, match=MANIFEST):
            attempt()
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    with pytest.raises(StoreError, match="no run folder"):
        read_run(tmp_path / "absent")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StoreError, match="cannot write to"):
            RunStore.create(path, {})


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_a_sentence(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="cannot write to"):
        RunStore.create(tmp_path / "locked" / "run", {})


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"format": 99}', '"run"', '{"format": 1, "matrix": {"quality": 0.5}}',
        '{"format": 1, "matrix": {"decoders": [1]}}', '{"format": 1, "sessions": {"a": 1}}',
        '{"format": 1, "matrix": {"quality": {"max_deviation": "much"}}}',
    ],
)  # fmt: skip
def test_a_broken_manifest_is_a_sentence(store, text):
    (store.path / MANIFEST).write_text(text)
    with pytest.raises(StoreError, match=MANIFEST):
        read_run(store.path)


def test_two_processes_do_not_share_a_folder(store):
    code = f"from harness.runs.store import RunStore; RunStore.resume({str(store.path)!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process is writing" in other.stderr
    store.close()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("cut", [0, 10, -10])
def test_a_truncated_part_is_named_and_set_aside_on_resume(store, cut):
    store.append("layers", [layer_row("a", 1)])
    (bad,) = read_run(store.path).parts("layers")
    store.append("layers", [layer_row("b", 1)])
    bad.write_bytes(bad.read_bytes()[:cut])
    with pytest.raises(StoreError, match=bad.name):
        read_run(store.path).table("layers")
    store.append("memory", [{"cell_id": "a", "method": "rss", "status": "ok"}])
    assert len(read_run(store.path).table("memory")) == 1  # other tables stay readable
    store.close()
    with RunStore.resume(store.path) as resumed:
        assert [path.name for path in resumed.damaged] == [f"layers-{bad.name}"]
        assert resumed.damaged[0].is_file() and not bad.exists()
        assert resumed.read("layers")["cell_id"].tolist() == ["b"]


def test_what_a_killed_write_leaves_is_no_row_and_is_cleared(store):
    store.append("layers", [layer_row("a", 1)])
    (part,) = read_run(store.path).parts("layers")
    leftover = part.with_name(f".{part.stem}.tmp")
    leftover.write_bytes(part.read_bytes()[:40])
    (store.path / ".manifest.tmp").write_text("{")
    assert len(read_run(store.path).table("layers")) == 1
    assert len(pd.read_parquet(store.path / "layers.parquet")) == 1
    store.close()
    with RunStore.resume(store.path) as resumed:
        assert len(resumed.read("layers")) == 1 and not leftover.exists()


def test_a_run_killed_before_its_manifest_can_be_started_again(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / ".manifest.tmp").write_text('{"form')
    with RunStore.create(tmp_path, {"matrix": 1}) as store:
        assert json.loads((tmp_path / MANIFEST).read_text())["matrix"] == store.manifest["matrix"] == 1


def test_columns_that_came_later_are_null_in_older_parts(store):
    folder = store.path / "layers.parquet"
    folder.mkdir()
    pd.DataFrame({"cell_id": ["a"], "cell_key": ["a"], "layer": [1]}).to_parquet(folder / "part-old.parquet")
    frame = read_run(store.path).table("layers")
    assert frame["layer"].tolist() == [1] and frame["flags"].isna().all()


def test_reading_needs_no_torch():
    code = "import sys, harness.runs.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
