"""What is stored under results/ was measured as its texts say, and `make results` mixes no versions."""

import json
from functools import cache
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import synthetic
from click.testing import CliRunner

from analysis.studies.stored import DIGITS, PROVENANCE, origin, provenance
from harness.errors import HarnessError
from harness.flows.checkpoints import ASSETS, checkpoint_path, digest, shipped
from harness.measure.planning import Plan
from harness.measure.studies import studies
from harness.runs.environment import code_version
from harness.runs.store import read_run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
OPTIONAL = "cifar10-paper"
FITS = ASSETS / "calibration"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@cache
def digest_of(flow):
    return digest(checkpoint_path(flow))


def disagreeing(found):
    """Checkpoints of `provenance` that are not the shipped flow of their name: of another digest, or none of that name.

    Snapshots of studies are known by their files, and lie under results/ themselves; of the optional flow what was
    fitted to it is shipped.
    """
    files = {name: path for path in RESULTS.rglob("*.safetensors") for name in (path.name, path.stem)}
    for row in found[["checkpoint", "checkpoint_digest"]].drop_duplicates().itertuples(index=False):
        name, stored = row.checkpoint, row.checkpoint_digest
        if name in shipped():
            now = digest_of(name)
        elif name in files:
            now = digest(files[name])
        elif name == OPTIONAL:
            now = stored if any(FITS.glob(f"{stored[:16]}*")) else None
        else:
            now = stored if name.startswith("random-") else None
        if now != stored:
            yield name


@pytest.mark.parametrize("name", names(RESULTS / "runs"))
def test_a_stored_run_names_its_code_and_is_of_the_flows_that_are_shipped(name):
    found = provenance([read_run(RESULTS / "runs" / name)])
    assert len(found) and found["code_version"].nunique() == 1
    assert list(disagreeing(found)) == []


@pytest.mark.parametrize("name", names(RESULTS / "baselines"))
def test_a_baseline_is_the_stored_run(name):
    found = provenance([read_run(RESULTS / "baselines" / name)])
    assert found.equals(provenance([read_run(RESULTS / "runs" / name.removesuffix("-cpu"))]))
    assert list(disagreeing(found)) == []


def test_stored_runs_are_of_one_version_of_the_code():
    runs = [read_run(path.parent) for path in (RESULTS / "runs").glob("*/manifest.json")]
    assert provenance(runs)["code_version"].nunique() == 1


@pytest.mark.parametrize("name", studies())
def test_a_study_says_what_its_tables_were_measured_from(name):
    found = pd.read_csv(RESULTS / "studies" / name / PROVENANCE, dtype=str)
    assert (RESULTS / "studies" / f"{name}.md").read_text(encoding="utf-8").endswith(f"\n{origin(found)}\n")
    assert list(disagreeing(found)) == []


@pytest.mark.parametrize(("text", "runs"), [("results/fastest.md", "fastest*"), ("README.md", "digits"),
                                            ("README.md", "fastest*")])  # fmt: skip
def test_a_text_says_what_it_was_rendered_from(text, runs):
    found = provenance([read_run(path) for path in sorted((RESULTS / "runs").glob(runs))])
    said = " ".join((ROOT / text).read_text(encoding="utf-8").split())
    assert origin(found) in said
    assert origin(found.assign(code_version="0" * 64)) not in said
    assert origin(found.assign(checkpoint_digest="0" * 64)) not in said


def test_another_checkpoint_of_a_shipped_name_is_found():
    found = pd.DataFrame({"checkpoint": ["digits", OPTIONAL, "digits-of-once"]})
    assert list(disagreeing(found.assign(checkpoint_digest="0" * 64))) == ["digits", OPTIONAL, "digits-of-once"]
    assert list(disagreeing(pd.DataFrame([{"checkpoint": "digits", "checkpoint_digest": digest_of("digits")}]))) == []


def test_what_is_shipped_as_fitted_is_of_flows_that_are_shipped_or_measured():
    found = provenance([read_run(path.parent) for path in (RESULTS / "runs").glob("*/manifest.json")])
    measured = {digest[:16] for digest in found["checkpoint_digest"]} | {digest_of(flow)[:16] for flow in shipped()}
    assert {path.name[:16] for path in FITS.iterdir()} <= measured


def test_an_origin_is_told_in_short_digests():
    row = {"checkpoint": "digits", "checkpoint_digest": "ab" * 32, "code_version": "cd" * 32}
    assert (
        origin(pd.DataFrame([row]))
        == f"Measured by code `{'cd' * (DIGITS // 2)}` from the checkpoints `digits` (abababab)."
    )


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT)
    module = import_module("benchmarks.results")
    for name, path in {"WORK": "runs/results", "RESULTS": "results", "README": "README.md"}.items():
        monkeypatch.setattr(module, name, tmp_path / path)
    monkeypatch.setattr(module, "harness", lambda *arguments: pytest.fail("nothing is to be measured"))
    return module


def measured(path, code=None, checkpoint="digits-64"):
    """A run of one flow by some version of the code, by default this one."""
    found = [cell | {"checkpoint": checkpoint} for cell in synthetic.cells(batches=(16,), code=code or code_version())]
    return synthetic.write_run(path, found, only=("timings",), images=False)


@pytest.mark.parametrize(("run", "what"), [({"code": "v1"}, "by other code"),
                                           ({"checkpoint": "digits"}, "from another checkpoint 'digits'")])  # fmt: skip
def test_runs_of_other_code_or_checkpoints_are_refused_in_a_sentence(results, run, what):
    folder = measured(results.WORK / "digits", **run)
    done = CliRunner().invoke(results.main, ["--dry-run"])
    assert done.exit_code == 2 and f"'{folder}' was measured {what}" in done.output and "remove" in done.output


def test_runs_of_this_code_are_gone_on_with(results, monkeypatch):
    monkeypatch.setattr(results, "planned", lambda stage: iter(()))
    measured(results.WORK / "digits")
    assert CliRunner().invoke(results.main, ["--dry-run"]).exit_code == 0


def test_an_unknown_stage_is_told(results):
    done = CliRunner().invoke(results.main, ["sudies"])
    assert done.exit_code == 2 and "sudies" in done.output and "studies" in done.output


def test_nothing_is_stored_before_all_runs_of_a_stage_are_done_and_then_all_is(results, monkeypatch):
    monkeypatch.setattr(results, "_digest", lambda flow: None)
    asked = []

    def run(command, matrix, *options):
        asked.append((matrix, *options))
        if len(asked) == 2:
            raise HarnessError("killed")
        if not (out := options[options.index("--out") + 1]).exists():
            measured(out)

    with pytest.raises(HarnessError, match="killed"):
        results.measure("runs", run)
    assert not results.RESULTS.exists()
    results.measure("runs", run)
    assert all("--resume" in options for options in asked)
    assert sorted(path.name for path in (results.RESULTS / "runs").iterdir()) == ["afhq", "cifar10", "digits"]
    stored = results.RESULTS / "runs" / "digits"
    assert not (stored / ".lock").exists() and len(read_run(stored).table("timings"))
    assert json.loads((results.RESULTS / "baselines" / "digits-cpu" / "manifest.json").read_text())["left_out"]


def test_the_flow_of_the_papers_shape_is_measured_where_it_lies_alone(results, monkeypatch):
    monkeypatch.setattr(results, "_digest", lambda flow: None)
    assert list(results.present("fastest")) == ["fastest"]
    monkeypatch.setattr(results, "_digest", lambda flow: "0")
    assert list(results.present("fastest")) == ["fastest", "fastest-paper"]


def test_a_dry_run_tells_stage_by_stage_and_in_all_and_measures_nothing(results, monkeypatch):
    found = {
        "runs": [Plan("matrix 'a'", "3 cells, 40 decodes", 90.0)],
        "fastest": [Plan("matrix 'b'", "9 cells, 90 decodes", 210.0), Plan("matrix 'c'", "1 cells, 2 decodes")],
    }
    monkeypatch.setattr(results, "planned", lambda stage: iter(found.get(stage, ())))
    done = CliRunner().invoke(results.main, ["--dry-run"])
    assert done.exit_code == 0, done.output
    assert "stage runs: 1 runs, about 2 min\n  matrix 'a': 3 cells, 40 decodes; about 1.5 min" in done.output
    assert "stage fastest: 2 runs, about 4 min" in done.output
    assert "altogether about 5 min; of 1 runs no stored time tells all" in done.output
