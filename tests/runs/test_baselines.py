"""Stored baselines: small, whole, and found by name."""

import pytest
from click.testing import CliRunner
from test_compare import Simulated, plain, simulate

from analysis.compare import compare_runs
from harness.cli import app
from harness.errors import HarnessError
from harness.runs.baselines import MAX_BYTES, baselines, open_run, save_baseline
from harness.runs.store import read_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return simulate(tmp_path / "run", plain(), seed=1)


def test_a_saved_run_compares_as_the_run_itself(run):
    (run.path / "samples").mkdir()
    (run.path / "samples" / "grid.png").write_bytes(b"x" * 3 * MAX_BYTES)
    folder = save_baseline(run.path, "digits-cpu")
    assert baselines()["digits-cpu"].resolve() == folder.resolve()
    stored = open_run("digits-cpu")
    assert stored.manifest["environment"] == run.manifest["environment"]
    assert {cell.verdict for cell in compare_runs(stored, run).verdicts} == {"same"}
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 100_000
    assert len(read_run(folder).parts("timings")) == 1 and not (folder / "samples").exists()


def test_a_name_is_taken_once(run):
    save_baseline(run.path, "a")
    with pytest.raises(HarnessError, match="--replace"):
        save_baseline(run.path, "a")
    assert save_baseline(run.path, "a", replace=True).is_dir()


def test_what_is_stored_again_as_it_was_changes_no_file(run, tmp_path):
    def files():
        stored = save_baseline(run.path, "a", replace=True).rglob("*")
        return {path: path.read_bytes() for path in stored if path.is_file()}

    before = files()
    assert files() == before
    other = simulate(tmp_path / "other", plain(), seed=2)
    save_baseline(other.path, "a", replace=True)
    assert open_run("a").table("timings").equals(other.table("timings"))


@pytest.mark.parametrize("name", ["", "../a", ".a", "a b"])
def test_a_name_is_a_name(run, name):
    with pytest.raises(HarnessError, match="cannot name"):
        save_baseline(run.path, name)


def test_a_run_without_timings_is_no_baseline(run, tmp_path):
    failed = simulate(tmp_path / "failed", [])
    with pytest.raises(HarnessError, match="no timings"):
        save_baseline(failed.path, "failed")
    assert "failed" not in baselines()


def test_what_is_too_large_is_refused_and_leaves_nothing(run, monkeypatch):
    monkeypatch.setattr("harness.runs.baselines.MAX_BYTES", 1000)
    with pytest.raises(HarnessError, match="allowed are 1,000"):
        save_baseline(run.path, "large")
    assert "large" not in baselines() and not list((run.path.parent / "results" / "baselines").iterdir())


def test_unknown_baselines_get_a_hint(run):
    save_baseline(run.path, "digits-cpu")
    with pytest.raises(HarnessError, match="did you mean 'digits-cpu'"):
        open_run("digits-cpi")
    with pytest.raises(HarnessError, match="no run folder at 'runs/nowhere'"):
        open_run("runs/nowhere")


def test_the_commands_save_and_compare_and_fail_on_a_regression(run, tmp_path):
    slow = simulate(tmp_path / "slow", [*plain()[:2], Simulated("sejd", 0.5)], seed=2)
    saved = CliRunner().invoke(app, ["baseline", "save", str(run.path), "digits-cpu"], standalone_mode=False)
    assert saved.output.strip() == "results/baselines/digits-cpu"
    for new, code in ((run, 0), (slow, 1)):
        done = CliRunner().invoke(app, ["compare", "digits-cpu", str(new.path), "--only", "regressed"],
                                  standalone_mode=False)  # fmt: skip
        assert done.exception is None and done.return_value == code
        assert ("sejd" in done.output) == bool(code)
