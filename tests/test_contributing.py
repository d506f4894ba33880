"""The examples of CONTRIBUTING.md, run as they stand: in place, and as an installed package."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner
from documents import ROOT, files

from harness.cli import app, main
from harness.contract import check
from harness.datasets import datasets, load_dataset
from harness.decoders import decoders
from harness.measure.expand import expand
from harness.measure.matrix import load_matrix
from harness.runs.store import read_run

EXAMPLES = files(ROOT / "CONTRIBUTING.md")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that holds the examples and can be imported from; the registries are put back afterwards."""
    for name, text in EXAMPLES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (decoders, datasets):
        monkeypatch.setattr(registry, "_objects", dict(registry.items()))  # all of them: nothing is discovered later
    yield tmp_path
    for name in EXAMPLES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_examples_are_short():
    lines = {name: len(text.splitlines()) for name, text in EXAMPLES.items()}
    assert lines["head_start.py"] <= 40
    assert max(lines["photo_tiles.py"], lines["small.toml"]) <= 14


def test_the_decoder_keeps_its_contract(folder, monkeypatch):
    monkeypatch.setattr("harness.fitting.calibrate.DENSE_SAMPLES", 256)  # what is fitted is fitted on few samples
    monkeypatch.setattr("harness.fitting.learned.STEPS", 60)
    findings = list(check("head_start:HeadStart", flows=["coupled", "coupled-classes"]))
    assert [finding.evidence for finding in findings if finding.outcome == "failed"] == []
    assert {finding.clause for finding in findings if finding.outcome == "not applicable"} == {"prefix"}


def test_the_dataset_loads(folder):
    __import__("photo_tiles")
    train, test = load_dataset("photo-tiles", "train"), load_dataset("photo-tiles", "test")
    assert train.pixels.shape[1:] == (3, 32, 32) and len(train) == 4 * len(test) == 416
    assert train.pixels.float().std() > 10


def test_the_probe_writes_a_table_of_its_own(folder, monkeypatch):
    monkeypatch.chdir(folder)
    command = ["probe", "first_tokens:FirstTokens", "digits", "--samples", "4", "--threads", "1", "--out", "run"]
    result = CliRunner().invoke(app, command, standalone_mode=False)
    assert result.exception is None
    rows = read_run("run").table("first_tokens")
    assert rows["layer"].tolist() == [1, 2, 3, 4, 5, 6] and (rows["rms"] > 0).all()


def test_the_study_is_measured_and_told(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for more in ((), ("--resume", "--check")):
        done = CliRunner().invoke(app, ["study", "few_steps", *more], standalone_mode=False)
        assert done.return_value == 0, done.output
    text = Path("results/studies/few-steps.md").read_text(encoding="utf-8")
    assert re.search(r"Layer 2 takes \d+ iterations", text) and "| sejd | 2 |" in text
    claims = Path("results/studies/README.md").read_text(encoding="utf-8")
    assert re.search(r"\*own claim, study few-steps\*: settles early \*\*(dis)?agree\*\*", claims)


def test_the_matrix_expands(folder):
    assert len(expand(load_matrix(str(folder / "small.toml")))) == 2


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package of the last example, installed with pip into a folder of its own."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "flow_extras").mkdir()
    (source / "flow_extras" / "__init__.py").touch()
    for name, text in EXAMPLES.items():
        if "/" in name:
            continue  # a study is no part of a package
        place = source if name == "pyproject.toml" else source / "flow_extras"
        (place / name).write_text(text, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", site, source], check=True, capture_output=True, text=True)
    return site


SERVES = """
import json, os, sys
from click.testing import CliRunner
from harness.cli import app, main
for line in sys.stdin:
    folder, *arguments = json.loads(line)
    os.chdir(folder)
    done = CliRunner().invoke(app, arguments, standalone_mode=False)
    print(json.dumps([repr(done.exception) if done.exception else done.return_value or 0, done.output]), flush=True)
"""


@pytest.fixture(scope="module")
def process(installed):
    """An interpreter with the plugin installed that answers one command line after the other."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command, pipe = [sys.executable, "-c", SERVES], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def harness(process, tmp_path):
    """Run the command line with the plugin installed, in an empty folder; its exit code and output."""

    def run(*arguments):
        print(json.dumps([str(tmp_path), *arguments]), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    return run


def test_an_installed_plugin_is_listed_with_its_origin(harness):
    code, output = harness("list")
    assert code == 0, output
    for line in (
        "head-start  Sequential for the first `head` tokens of every layer, Jacobi iteration for the rest.",
        "photo-tiles  32x32 tiles of two photographs, embedded (scikit-learn's `load_sample_images`).",
        "small  A look at one decoder beside sequential, on the shipped digits",
    ):
        assert re.search(re.sub(r"\\? +", " +", re.escape(line)) + r"  \[flow-extras\]", output), output
    assert re.search(r"sequential +Exact decoding.*\[harness\]", output)


def test_an_installed_decoder_is_checked_by_name(harness):
    code, output = harness("check", "head-start", "--flow", "coupled", "--seed", "3")
    assert code == 0, output
    assert "0 failed" in output


def test_an_installed_decoder_runs_against_a_stored_baseline(harness, tmp_path):
    """The plugin's matrix is measured, stored, and a decoder compared with it, all by name."""
    code, output = harness("run", "small", "--out", "first", "--threads", "1")
    assert code == 0, output
    assert harness("baseline", "save", "first", "digits-here")[0] == 0
    code, output = harness("run", "small", "--out", "second", "--threads", "1", "--decoder", "head-start head=8",
                           "--against", "digits-here")  # fmt: skip
    assert code in (0, 1), output  # the times of this machine decide which; the costs do not
    verdicts = output[output.index("verdict") :]
    row = r"new (flow )?digits,? (decoder )?head-start head=8 tau 0.5,? (batch )?4\b"  # a line of a table, or of words
    assert re.search(row, " ".join(verdicts.split())), output
    assert "the stored run's fastest valid here" in " ".join(verdicts.split())
    assert "digits-here  matrix small on" in harness("list", "baselines")[1]


def test_a_wrong_baseline_is_told_before_anything_is_measured(harness, tmp_path):
    code, output = harness("run", "small", "--out", "run", "--against", "nowhere")
    assert "unknown baseline 'nowhere'" in code, output
    assert not (tmp_path / "run").exists()


def test_a_decoder_in_the_working_folder_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "here.py").write_text(textwrap.dedent(EXAMPLES["head_start.py"]).replace("head-start", "here"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["harness", "check", "here:HeadStart", "--flow", "coupled", "--clause", "exact"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(decoders, "_objects", dict(decoders.items()))
    with pytest.raises(SystemExit) as ended:
        main()
    sys.modules.pop("here", None)
    assert ended.value.code == 0, capsys.readouterr()
