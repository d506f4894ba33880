"""Merging run folders, and the names that cells get."""

import pytest
from synthetic import cells, options, write_run

from analysis.load import load, nearest_tau, one_batch
from harness.errors import StoreError


def test_a_folder_of_runs_is_all_of_them(tmp_path):
    write_run(tmp_path / "a" / "one", list(cells(batches=(1,))), images=False)
    write_run(tmp_path / "b", list(cells(batches=(4,))), images=False)
    runs = load([tmp_path])
    assert [run.path.name for run in runs.runs] == ["one", "b"]
    assert sorted(runs.cells["batch_size"].unique()) == [1, 4]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_run_is_said_in_a_sentence(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="run folder"):
        load([tmp_path / name])


def test_of_two_code_versions_the_run_named_last_counts(tmp_path):
    old, new = list(cells(batches=(1,), code="v1")), list(cells(batches=(1,), code="v2"))
    write_run(tmp_path / "old", old, images=False)
    write_run(tmp_path / "new", new, images=False)
    runs = load([tmp_path / "old", tmp_path / "new"])
    assert len(runs.cells) == len(new)
    assert set(runs.tables["layers"]["cell_id"]) == {cell["cell_id"] for cell in new}
    assert "2 versions of the code" in runs.notes[0]
    assert set(load([tmp_path / "new", tmp_path / "old"]).cells["cell_id"]) == {cell["cell_id"] for cell in old}


def test_the_same_cells_in_two_runs_add_up_their_rounds_and_nothing_else(tmp_path):
    found = list(cells(batches=(1,)))
    from synthetic import timing_rows

    write_run(tmp_path / "a", found, images=False)
    write_run(tmp_path / "b", found, images=False, timings=list(timing_rows(found, rounds=3, session="s2")))
    runs = load([tmp_path / "a", tmp_path / "b"])
    assert set(runs.speedups["pairs"]) == {9}
    assert len(runs.tables["layers"]) == len(load([tmp_path / "a"]).tables["layers"])


def test_flows_and_series_are_named_by_what_tells_them_apart(tmp_path):
    many = [
        *cells(batches=(1,)),
        *cells(batches=(1,), options=options(initial="input"), code="v3"),
        *cells(dataset="cifar10-jpeg", tokens=64, batches=(1,)),
        *cells(dataset="cifar10-jpeg", tokens=256, batches=(1,)),
    ]
    many = [cell | {"options": options(initial="zeros")} if cell["options"] == "{}" else cell for cell in many]
    runs = load([write_run(tmp_path / "run", many, only=(), images=False)])
    assert set(runs.cells["flow"]) == {"digits", "cifar10-jpeg", "cifar10-jpeg-256"}
    digits = runs.cells[runs.cells["flow"] == "digits"]
    assert {"sejd initial=input", "sejd initial=zeros"} <= set(digits["series"])


def test_devices_are_told_apart(tmp_path):
    found = list(cells(batches=(1,)))
    other = [
        cell | {"cell_id": cell["cell_id"] + "g", "cell_key": cell["cell_key"] + "g", "device": "cuda"}
        for cell in found
    ]
    runs = load([write_run(tmp_path / "run", found + other, only=(), images=False)])
    assert set(runs.cells["flow"]) == {"digits, cpu", "digits, cuda"}


def test_one_batch_takes_the_one_with_most_cells_and_nearest_tau_the_papers(tmp_path):
    found = [*cells(batches=(1,)), *cells(batches=(4,)), *cells(batches=(16,), taus=(0.3,))]
    runs = load([write_run(tmp_path / "run", found, only=(), images=False)])
    assert set(one_batch(runs.cells)["batch_size"]) == {4}
    assert set(nearest_tau(runs.cells).dropna(subset=["tau"])["tau"]) == {0.5}


def test_a_plugin_is_no_version_of_the_code_but_two_of_its_own_are_told(tmp_path):
    def found(version):
        for cell in cells(batches=(1,)):
            own = cell["decoder"] == "gs-jacobi"
            yield cell | (
                {"decoder": "mine", "code_version": version, "cell_id": cell["cell_id"] + version} if own else {}
            )

    write_run(tmp_path / "a", list(found("mine 1")), images=False)
    runs = load([tmp_path / "a"])
    assert (runs.notes, runs.foreign) == ((), ["mine"])
    write_run(tmp_path / "b", list(found("mine 2")), images=False)
    (note,) = load([tmp_path / "a", tmp_path / "b"]).notes
    assert note.startswith("5 cells were measured by several versions")
