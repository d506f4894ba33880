"""`--dry-run`: what would be done, how long it takes and what is missing; nothing is touched."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from analysis.studies.stored import store_took, took
from harness.cli import app
from harness.errors import HarnessError
from harness.fitting.calibrate import LEAST_S, within
from harness.flows import load_flow
from harness.measure.expand import expand
from harness.measure.matrix import build_matrix
from harness.measure.planning import plan_calibration, plan_matrix, plan_probe
from harness.measure.probes.probe import build_probe
from harness.measure.run_matrix import run_matrix
from harness.progress import SILENT
from harness.runs.store import Run, read_run

COMMANDS = {
    "run": ["run", "quickstart", "--profile", "fast"],
    "probe": ["probe", "layers", "digits"],
    "study": ["study", "which-layers"],
    "calibrate": ["calibrate", "digits"],
    "tune": ["tune", "digits", "--batch", "4"],
    "train": ["train", "digits"],
    "recommend": ["recommend", "digits"],
    "check": ["check", "sejd"],
}


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_measures_or_fits_says_what_it_would_do_and_does_nothing(name, tmp_path):
    result = CliRunner().invoke(app, [*COMMANDS[name], "--dry-run"], standalone_mode=False)
    assert result.exception is None and not result.return_value, result.output
    assert re.search(r": [\w, ]*\d[\w, ]*.*; (about [\d.]+ min|how long is not known)", result.output), result.output
    assert list((tmp_path / "work").iterdir()) == [] and not (tmp_path / "cache" / "nf-decoding-harness").exists()
    commands = app.commands if name != "probe" else {"probe": app.commands["probe"].get_command(None, "layers")}
    options = {option for param in commands[name].params for option in param.opts}
    assert {"--threads", "--dry-run"} <= options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "digits", "--steps", "3", "--set", "steps=4"], "gives 'steps' a second time"),
        (["train", "digits", "--set", "name_or_path=4"], "unknown key 'name_or_path'"),
        (["check", "sejdd"], "did you mean 'sejd'"),
        (["check", "sejd", "--clause", "exakt"], "unknown clause 'exakt'"),
        (["check", "sejd", "--flow", "digitz"], "did you mean 'digits'"),
        *([] if torch.cuda.is_available() else [(["calibrate", "digits", "--device", "cuda"], "no CUDA device")]),
    ],
)
def test_what_could_not_be_done_is_said_before(arguments, said):
    error = CliRunner().invoke(app, [*arguments, "--dry-run"], standalone_mode=False).exception
    assert isinstance(error, HarnessError) and said in str(error)


def test_a_calibration_takes_the_seconds_it_is_given_or_those_that_the_stored_decodes_ask_for():
    flow = load_flow("digits")
    assert plan_calibration(flow, 64, 30.0).seconds == 30.0
    assert plan_calibration(flow, None).seconds == LEAST_S["cpu"]
    slow = SimpleNamespace(device=torch.device("cpu"))
    assert [within(slow, exact_s) for exact_s in (0.001, 0.2, 9.0)] == [LEAST_S["cpu"], pytest.approx(409.6), 540.0]


def matrix(checkpoint, **changes):
    decoders = [{"name": "sequential"}, {"name": "sejd", "select": "measured"}]
    tables = {
        "name": "tiny", "datasets": [{"name": "digits", "checkpoint": str(checkpoint)}], "decoders": decoders,
        "grid": {"batch_sizes": [2]}, "timing": {"rounds": 3, "warmup": 1}, "memory": {"enabled": False},
        "quality": {"num_samples": 5}, "residuals": {"enabled": False}, "device": "cpu",
    }  # fmt: skip
    return build_matrix(tables | changes, "a test")


def test_a_plan_counts_the_decodes_and_what_is_left_of_them(tiny_checkpoint, tmp_path):
    planned = plan_matrix(matrix(tiny_checkpoint), tmp_path / "run")
    assert planned.size == "2 cells, 16 decodes"  # each 1 + 3 rounds, 1 to trace it, 3 batches for 5 samples
    assert planned.seconds is None and planned.untimed == "16 decodes without a stored time"
    assert [one for one in planned.missing if "made first" in one] == [
        f"what iteration leaves of each layer of {tiny_checkpoint.stem}; it is made first"
    ]
    run_matrix(matrix(tiny_checkpoint), tmp_path / "run", SILENT)
    again = plan_matrix(matrix(tiny_checkpoint), tmp_path / "run", resume=True)
    assert (again.size, again.seconds) == ("2 cells, 0 decodes", 0.0)
    anew = plan_matrix(matrix(tiny_checkpoint), tmp_path / "other")
    assert anew.size == planned.size and not any("made first" in one for one in anew.missing)
    more = matrix(tiny_checkpoint, timing={"rounds": 5, "warmup": 0})
    assert {cell.cell_id for cell in expand(more)} == {cell.cell_id for cell in expand(matrix(tiny_checkpoint))}
    left = plan_matrix(more, tmp_path / "run", resume=True)
    assert left.size == "2 cells, 4 decodes" and left.seconds > 0 and not left.untimed


def test_what_certificates_are_calibrated_by_is_missing_too(tiny_checkpoint):
    Path("results").mkdir()
    Path("results/manifest.json").write_text('{"name": "of something else"}')
    made = f"calibration of {tiny_checkpoint.stem}; it is made first"
    certified = matrix(tiny_checkpoint, decoders=[{"name": "sequential"}, {"name": "ujd", "certify": 0.01}])
    assert made in plan_matrix(certified, Path("run")).missing
    assert made in plan_probe("certificate", build_probe("certificate", decoders="ujd"), str(tiny_checkpoint)).missing


def test_a_checkpoint_that_is_not_there_is_missing():
    table = {"name": "cifar100", "optional": True}
    both = {"datasets": [{"name": "digits"}, table], "grid": {"batch_sizes": [16]}}
    planned = plan_matrix(matrix("digits", **both), Path("run"))
    assert any(one.startswith("cifar100 is skipped: there is no flow") for one in planned.missing)
    assert planned.size == "2 cells, 12 decodes" and planned.seconds > 0  # by the stored baseline


def test_how_long_a_study_took_is_stored_and_listed(tiny_checkpoint, tmp_path, monkeypatch):
    runs = [run_matrix(matrix(tiny_checkpoint), tmp_path / name, SILENT) for name in ("one", "two")]
    took_s = [run.manifest["seconds"] for run in runs]
    run_matrix(matrix(tiny_checkpoint), tmp_path / "one", SILENT, resume=True)
    assert read_run(tmp_path / "one").manifest["seconds"] >= took_s[0], "what is added to is not told anew"
    folder = tmp_path / "results" / "studies" / "tau"
    store_took(folder, "fast", runs)
    assert not folder.exists(), "a study that is not stored has no duration"
    folder.mkdir(parents=True)
    store_took(folder, "fast", runs)
    assert took("tau", [tmp_path, folder.parent]) == ("fast", pytest.approx(sum(took_s)))
    (folder / "took-timed.csv").write_text("profile,seconds\nfull,7230\n")
    store_took(folder, "fast", [*runs, Run(tmp_path, {})])
    assert took("tau", [folder.parent]) == ("full", 7230.0), "one of the runs does not tell"
    monkeypatch.setattr("harness.cli.catalog.RESULTS", [folder.parents[1]])
    listed = CliRunner().invoke(app, ["list", "studies"], standalone_mode=False).output
    assert "threshold: 2 h, profile full" in listed and "Convergence of Jacobi iteration: not timed yet" in listed
