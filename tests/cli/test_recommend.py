"""`harness recommend` and what goes with it: one sentence from stored tables, Python lines that run, states, FID or why
not."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

import harness
from analysis.summary import recommendations, summarise
from harness.cli import app
from harness.cli.face import Recommended
from harness.errors import HarnessError
from harness.fitting.tune import Tuner
from harness.flows import load_flow
from harness.measure.sources import matrix_of
from harness.runs.store import read_run

SMALL = {
    "harness.fitting.calibrate.SAMPLES": 64,
    "harness.fitting.calibrate.DENSE_SAMPLES": 64,
    "harness.fitting.tune.SAMPLES": 16,
    "harness.fitting.tune.ENOUGH_S": 0.0,
    "harness.fitting.trials.MOST_ROUNDS": 6,
}


def call(*arguments):
    environment = {"COLUMNS": "170"}
    return CliRunner().invoke(app, [str(part) for part in arguments], standalone_mode=False, env=environment)


@pytest.fixture
def small(monkeypatch, tmp_path, tiny_checkpoint):
    """A folder with a checkpoint that nothing is fitted to, where fits are small."""
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)
    monkeypatch.chdir(tmp_path)
    return shutil.copy(tiny_checkpoint, tmp_path / "mine.safetensors")


@pytest.fixture(scope="module")
def done(tiny_checkpoint, tmp_path_factory):
    """The folder of a recommendation for a checkpoint that nothing was fitted to, and what was printed."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SMALL.items():
            patched.setattr(name, value)
        folder = tmp_path_factory.mktemp("recommend")
        patched.chdir(folder)
        shutil.copy(tiny_checkpoint, "mine.safetensors")
        result = call("recommend", "mine.safetensors", "--seconds", 0.1, "--batch-size", 2, "--threads", 1)
        assert result.exception is None, result.output
        return folder, result


def test_it_ends_in_a_sentence_and_lines_that_run(done, monkeypatch):
    folder, result = done
    monkeypatch.chdir(folder)
    run = read_run("runs/recommend-mine")
    (found,) = recommendations(run)
    assert str(found) in result.stdout
    for part in ("mine, batch 2, cpu, float32, 1 thread: use ", "1,000 images in about"):
        assert part in str(found)
    lines = result.stdout.partition("In Python")[2].partition(":\n")[2]
    assert [line.strip() for line in lines.strip().splitlines()] == found.python.splitlines()
    names: dict = {}
    exec(found.python, names)
    assert names["images"].shape == (2, 1, 8, 8)


def test_it_says_how_far_it_is_and_why_there_is_no_fid(done):
    _, result = done
    for part in ("calibrate: layer", "tune: ", "try: ", "timing: ", " left", "FID is not measured: unknown dataset"):
        assert part in result.stderr, result.stderr
    assert "--dataset NAME says what the flow was trained on" in result.stderr
    assert "Valid (deviation only): deviation at most" in " ".join(result.stdout.split())


def test_states_are_three_and_auto_shows_its_budget(done):
    folder, result = done
    run = read_run(folder / "runs" / "recommend-mine")
    layers = run.table("layers").merge(run.table("cells")[["cell_id", "decoder"]], on="cell_id")
    states = layers.groupby("decoder")["state"].agg(set)
    assert (
        states["sequential"] == {"converged"}
        and states["fitted"] == {"done"}
        and states["auto"] <= {"done", "converged"}
    )
    assert layers["converged"].all()
    frame = summarise(run).set_index("decoder")
    assert frame["state"]["fitted"] == "done" and "!" not in frame["iterations"]["fitted"]
    assert frame["tau"][["auto", "fitted"]].isna().all()
    assert re.search(r"auto, budget sejd +│ +│", result.stdout) and re.search(r"\d, done +│", result.stdout)


def test_show_tells_it_again(done):
    folder, _ = done
    path = folder / "runs" / "recommend-mine"
    (found,) = recommendations(read_run(path))
    assert str(found) in call("show", path).stdout
    told = json.loads(
        call("show", path, "--json").stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert told["recommendations"][0]["sentence"] == found.sentence
    cells = {cell["decoder"]: cell for cell in told["cells"]}
    assert {"sequential", "sejd", "auto"} <= set(cells)
    assert cells["auto"]["options"].items() >= {("budget", None)} and cells["auto"]["guidance"] is None
    with pytest.raises(HarnessError, match="no run folder at"):
        raise call("show", folder / "absent").exception


def test_it_goes_on_and_shows_a_probe(done, monkeypatch):
    folder, first = done
    monkeypatch.chdir(folder)
    again = call("recommend", "mine.safetensors", "--seconds", 9, "--batch-size", 2, "--threads", 1, "--resume")
    assert again.exception is None and again.stdout == first.stdout
    assert call("probe", "crm", "mine.safetensors", "--out", "probe").exception is None
    assert "probes: 1 rows" in call("show", "probe").stdout
    assert json.loads(call("show", "probe", "--json").stdout)["rows"]["probes"] == 1
    assert harness.load("probe").summary().empty and "<table" in harness.load("probe")._repr_html_()


def test_a_run_shows_itself(done):
    folder, _ = done
    runs = harness.load(folder / "runs" / "recommend-mine")
    assert repr(runs).endswith("recommend-mine: 7 cells of 1 flow>")
    assert Recommended([], runs.runs[0])._repr_html_() == runs._repr_html_()
    assert len(runs.summary()) == 7 and "<table" in runs._repr_html_() and "use " in runs._repr_html_()


def test_sample_takes_auto_where_it_was_tuned(done, small, monkeypatch):
    assert "by sejd in" in call("sample", small, "-n", 2).stdout
    folder, _ = done
    monkeypatch.chdir(folder)
    told = call("sample", "mine.safetensors", "-n", 8, "--dataset", "digits").stdout
    assert "by auto in" in told and re.search(r"FID [\d.]+, KID .* 8 samples to \d+ images of digits", told)
    assert harness.sample("mine.safetensors", 2).decoder.budget is None
    assert (
        type(harness.sample("mine.safetensors", 2, guidance=harness.Guidance(0.5)).decoder).__name__
        == "SelectiveJacobi"
    )


def test_a_script_measures_without_being_run_again_in_every_process(done):
    """Although multiprocessing's guard is not there."""
    folder, _ = done
    call = "repr(harness.recommend('mine.safetensors', batches=2, seconds=0.1, out='bare', threads=1))"
    (folder / "script.py").write_text(f"import harness\nprint('told', {call})\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("told") == 1 and "use " in ran.stdout


def test_what_was_fitted_is_kept_when_it_is_interrupted(small, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tuner, "schedule", interrupted)
    call("recommend", small, "--seconds", 0.1, "--batch-size", 2, "--threads", 1)
    flow = load_flow(small)
    assert harness.build_decoder("fitted").missing(flow, 2) == [] != harness.build_decoder("auto").missing(flow, 2)


def test_tune_ends_in_the_same_sentence(small):
    result = call("tune", small, "--batch", 2, "--samples", 16, "--seconds", 0.1, "--threads", 1, "--dataset", "digits")
    assert result.exception is None, result.output
    (found,) = recommendations(read_run("runs/tune-mine"))
    assert str(found) in result.stdout and found.python.splitlines()[-1] in result.stdout
    assert read_run("runs/tune-mine").table("quality")["fid"].notna().all()
    assert set(summarise(read_run("runs/tune-mine"))["decoder"]) == {"sequential", "sejd", "auto"}


def test_calibrate_takes_a_device_and_how_many_are_decoded_together(small):
    options = ("--samples", 16, "--seconds", 0, "--batch-size", 5, "--device")
    result = call("calibrate", small, *options, "cpu")
    assert result.exception is None and "calibration" in result.stdout
    if not torch.cuda.is_available():
        for arguments in (("calibrate", small, *options, "cuda"), ("tune", small, "--batch", 2, "--device", "cuda")):
            error = call(*arguments).exception
            assert isinstance(error, HarnessError) and "torch finds no CUDA device" in str(error)


def test_what_a_checkpoint_was_trained_on(small):
    assert matrix_of(str(small), dataset="digits").datasets[0].name == "digits"
    assert matrix_of(str(small)).datasets[0].name == "mine"
    for arguments, sentence in (
        (("run", "quickstart", "--dataset", "digits"), "the matrix 'quickstart' names its own"),
        (("run", small, "--dataset", "digitz"), "did you mean 'digits'"),
        (("recommend", small, "--dataset", "digitz"), "did you mean 'digits'"),
        (("sample", small, "--dataset", "digitz"), "did you mean 'digits'"),
        (("tune", small, "--batch", 2, "--dataset", "digitz"), "did you mean 'digits'"),
        (("sample", small, "--dataset", "digits", "--out", "folder"), "one grid"),
        (("sample", small, "--decoder", "auto", "--tau", 0.3), "takes no tau"),
        (("recommend", "digitz"), "did you mean 'digits'"),
    ):
        error = call(*arguments).exception
        assert isinstance(error, HarnessError) and sentence in str(error), error
    wrongs = {"or 'sejd'": {"budgets": "sejdd"}, "batch_sizes": {"batches": 0}, "not -1.0": {"budgets": -1.0}}
    for sentence, wrong in wrongs.items():
        with pytest.raises(HarnessError, match=sentence):
            harness.recommend(small, **wrong)
    with pytest.raises(HarnessError, match="this flow has none"):
        harness.recommend(load_flow(load_flow(small).state_dict()))
