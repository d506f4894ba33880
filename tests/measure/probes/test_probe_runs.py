"""`harness probe`: options from the probe, rows in a run folder, nothing measured twice."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import click
import pytest
from click.testing import CliRunner
from in_process import InProcess
from pydantic import Field

from harness.cli import app
from harness.errors import HarnessError
from harness.measure.probes.probe import Probe, build_probe, probe_table, probes
from harness.measure.run_probe import run_probe, subject_of
from harness.measure.units import Unit
from harness.options import options_of
from harness.progress import LineReporter
from harness.registry import first_line
from harness.runs.store import RunStore, read_run
from harness.runs.tables import INTEGER, REAL


@dataclass(kw_only=True)
class Counting(Probe):
    """Writes a row per layer to a table of its own, and remembers what it was asked to measure."""

    tables = (probe_table("norms", ("layer",), {"layer": INTEGER, "norm": REAL}),)
    measured: ClassVar[list[int]] = []
    dies_at: ClassVar[int | None] = None
    fails_at: ClassVar[int | None] = None

    factor: Annotated[float, Field(gt=0, description="Of the norm.")] = 2.0

    def units(self, flow, subject):
        layers = range(1, flow.num_layers + 1)
        return [Unit(f"layer {n}", (subject,), key={"layer": n}, tables=("norms",)) for n in layers]

    def measure(self, unit, bench):
        layer = unit.key["layer"]
        if layer == self.dies_at:
            raise KeyboardInterrupt
        if layer == self.fails_at:
            raise ValueError("this layer cannot be measured")
        self.measured.append(layer)
        return {"norms": [{"layer": layer, "norm": self.factor * layer}]}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(Counting, "measured", [])
    monkeypatch.setattr(Counting, "dies_at", None)
    monkeypatch.setattr(Counting, "fails_at", None)


def run(path, probe=None, resume=False, checkpoint="digits"):
    return run_probe(probe or Counting(), checkpoint, path, LineReporter(), resume=resume, executor=InProcess())


def test_rows_carry_what_identifies_and_describes_them(tmp_path):
    done = run(tmp_path / "run")
    rows, (probe,) = done.table("norms"), done.table("probes").to_dict("records")
    assert rows["layer"].tolist() == [1, 2, 3, 4, 5, 6] and (rows["norm"] == 2.0 * rows["layer"]).all()
    assert set(rows["cell_id"]) == {probe["cell_id"]} and set(rows["checkpoint"]) == {"digits"}
    assert probe["dataset"] == "digits" and probe["num_tokens"] == 64 and '"factor": 2.0' in probe["options"]
    assert done.manifest["environment"]["device"] == "cpu"


def test_a_killed_probe_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "dies_at", 4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.setattr(Counting, "dies_at", None)
    done = run(tmp_path / "run", resume=True)
    assert Counting.measured == [1, 2, 3, 4, 5, 6]  # each once
    assert done.table("norms")["layer"].tolist() == [1, 2, 3, 4, 5, 6] and len(done.table("probes")) == 1


def test_a_finished_probe_is_not_run_again_and_other_options_are_another_cell(tmp_path):
    run(tmp_path / "run")
    run(tmp_path / "run", resume=True)
    assert len(Counting.measured) == 6
    done = run(tmp_path / "run", Counting(factor=3.0), resume=True)
    assert len(Counting.measured) == 12 and len(done.table("probes")) == 2 and len(done.table("norms")) == 12


def test_a_run_folder_of_something_else_is_added_to(tmp_path):
    there = {"cpu": "that one", "fingerprint": "of that one"}
    session = {"first": {"environment": there, "started": "earlier"}}
    with RunStore.create(tmp_path / "run", {"matrix": {"name": "quick"}, "environment": there, "sessions": session}):
        pass
    done = run(tmp_path / "run", resume=True)
    assert len(done.table("norms")) == 6
    assert done.manifest["matrix"] == {"name": "quick"} and done.manifest["environment"] == {
        "cpu": "that one",
        "fingerprint": None,
    }
    assert len(done.manifest["sessions"]) == 2


def test_without_resume_a_run_is_left_alone(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(HarnessError, match="give --resume"):
        run(tmp_path / "run")


def test_rows_of_a_damaged_part_are_measured_again(tmp_path):
    run(tmp_path / "run")
    (part,) = read_run(tmp_path / "run").parts("norms")
    part.write_bytes(part.read_bytes()[:-40])
    done = run(tmp_path / "run", resume=True)
    assert len(done.table("norms")) == 6 and len(Counting.measured) == 12


def test_the_command_runs_a_probe_of_the_users_own_with_its_options(tmp_path):
    out = tmp_path / "run"
    name = f"{Counting.__module__}:Counting"
    arguments = ["probe", name, "digits", "--factor", "5", "--seed", "3", "--out", str(out), "--threads", "1"]
    result = CliRunner().invoke(app, arguments, standalone_mode=False)
    assert result.exception is None and str(out) in result.output
    with RunStore.resume(out) as store:
        (probe,) = store.read("probes").to_dict("records")
        assert store.read("norms")["norm"].max() == 30
    assert probe["probe"] == name and probe["seed"] == 3


def test_a_probe_without_a_checkpoint_is_told_what_is_missing():
    with pytest.raises(click.MissingParameter, match="checkpoint"):
        CliRunner().invoke(app, ["probe", "convergence"], standalone_mode=False, catch_exceptions=False)


def test_every_probe_is_listed_described_and_its_options_too():
    runner = CliRunner()
    listed = runner.invoke(app, ["list", "probes"], standalone_mode=False).output
    group = runner.invoke(app, ["probe", "--help"]).output
    for name, probe in probes.items():
        assert f"  {name}" in listed and f"  {name}" in group
        assert 20 < len(first_line(probe)) <= 120, name
        told = runner.invoke(app, ["probe", name, "--help"]).output
        for option in options_of(probe):
            assert f"--{option.name.replace('_', '-')}" in told and option.help.endswith("."), (name, option.name)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("redundancies", {}, "did you mean 'redundancy'"),
        ("redundancy", {"sample": 3}, "did you mean 'samples'"),
        ("redundancy", {"samples": "many"}, "samples"),
        ("redundancy", {"o": "1,-2"}, "greater than or equal to 0"),
        ("harness.cli:app", {}, "is no probe"),
    ],
)
def test_a_mistake_is_one_sentence(name, options, words):
    with pytest.raises(HarnessError, match=words):
        build_probe(name, **options)


def test_lists_and_text_make_the_same_probe_and_the_same_cell(tmp_path):
    listed, text = build_probe("redundancy", o=[0, 2]), build_probe("redundancy", o="0, 2")
    assert listed == text and listed.o == (0, 2)
    made = (listed, text, build_probe("redundancy", o="0,3"))
    assert len({subject_of(probe, "digits", None, "cpu").cell_id for probe in made}) == 2


def test_a_unit_that_fails_is_a_row_and_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "fails_at", 2)
    done = run(tmp_path / "run")
    (failure,) = done.table("failures").to_dict("records")
    assert failure["pass"].endswith("layer 2") and failure["error"] == "ValueError: this layer cannot be measured"
    assert done.table("norms")["layer"].tolist() == [1, 3, 4, 5, 6]
    assert any((done.path / "failures").glob("*.txt"))
    assert Counting.measured == [1, 3, 4, 5, 6]
    run(tmp_path / "run", resume=True)
    assert len(Counting.measured) == 5  # what failed is not tried again


def test_a_table_of_a_plugins_probe_is_declared_by_the_run(tmp_path):
    done = run(tmp_path / "run")
    assert done.manifest["tables"]["norms"]["key"] == ["cell_id", "layer"]
    assert read_run(done.path).table("norms").equals(done.table("norms"))
    with pytest.raises(HarnessError, match="unknown table 'norm'"):
        done.table("norm")
