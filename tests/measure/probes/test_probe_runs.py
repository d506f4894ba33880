"""`harness probe`: options from the probe, rows in a run folder, nothing measured twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from harness.cli import app
from harness.errors import HarnessError
from harness.measure.probes.probe import Probe, Rows, Subject, Unit, build_probe, options_of, probes
from harness.measure.probes.running import describe, run_probe
from harness.progress import LineReporter
from harness.registry import first_line
from harness.runs.store import RunStore, parts


@dataclass(kw_only=True)
class Counting(Probe):
    """Writes a row per layer to the table jacobians, and remembers what it was asked to measure."""

    measured: ClassVar[list[int]] = []
    dies_at: ClassVar[int | None] = None

    factor: Annotated[float, Field(gt=0, description="Of the norm.")] = 2.0

    def units(self, subject: Subject) -> list[Unit]:
        return [Unit(f"layer {n}", {"layer": n}, ("jacobians",)) for n in range(1, subject.flow.num_layers + 1)]

    def measure(self, subject: Subject, units: Sequence[Unit]) -> Iterator[dict[str, Rows]]:
        for unit in units:
            layer = unit.key["layer"]
            if layer == self.dies_at:
                raise KeyboardInterrupt
            self.measured.append(layer)
            yield {"jacobians": [unit.key | {"sample": 0, "power": 1, "norm_spectral": self.factor * layer}]}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(Counting, "measured", [])
    monkeypatch.setattr(Counting, "dies_at", None)


def run(path, probe=None, resume=False, checkpoint="digits"):
    return run_probe(probe or Counting(), checkpoint, path, LineReporter(), resume=resume)


def test_rows_carry_what_identifies_and_describes_them(tmp_path):
    done = run(tmp_path / "run")
    rows, (probe,) = done.table("jacobians"), done.table("probes").to_dict("records")
    assert rows["layer"].tolist() == [1, 2, 3, 4, 5, 6] and (rows["norm_spectral"] == 2.0 * rows["layer"]).all()
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
    assert done.table("jacobians")["layer"].tolist() == [1, 2, 3, 4, 5, 6] and len(done.table("probes")) == 1


def test_a_finished_probe_is_not_run_again_and_other_options_are_another_cell(tmp_path):
    run(tmp_path / "run")
    run(tmp_path / "run", resume=True)
    assert len(Counting.measured) == 6
    done = run(tmp_path / "run", Counting(factor=3.0), resume=True)
    assert len(Counting.measured) == 12 and len(done.table("probes")) == 2 and len(done.table("jacobians")) == 12


def test_a_run_folder_of_something_else_is_added_to(tmp_path):
    with RunStore.create(tmp_path / "run", {"matrix": {"name": "quick"}, "environment": {"cpu": "that one"}}):
        pass
    done = run(tmp_path / "run", resume=True)
    assert len(done.table("jacobians")) == 6
    assert done.manifest["matrix"] == {"name": "quick"} and done.manifest["environment"] == {"cpu": "that one"}
    assert len(done.manifest["sessions"]) == 1


def test_without_resume_a_run_is_left_alone(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(HarnessError, match="give --resume"):
        run(tmp_path / "run")


def test_rows_of_a_damaged_part_are_measured_again(tmp_path):
    run(tmp_path / "run")
    (part,) = parts(tmp_path / "run", "jacobians")
    part.write_bytes(part.read_bytes()[:-40])
    done = run(tmp_path / "run", resume=True)
    assert len(done.table("jacobians")) == 6 and len(Counting.measured) == 12


def test_the_command_runs_a_probe_of_the_users_own_with_its_options(tmp_path):
    out = tmp_path / "run"
    name = f"{Counting.__module__}:Counting"
    arguments = ["probe", name, "digits", "--factor", "5", "--seed", "3", "--out", str(out), "--threads", "1"]
    result = CliRunner().invoke(app, arguments, standalone_mode=False)
    assert result.exception is None and str(out) in result.output
    with RunStore.resume(out) as store:
        (probe,) = store.read("probes").to_dict("records")
        assert store.read("jacobians")["norm_spectral"].max() == 30
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
    from harness.flows import load_flow
    from harness.flows.checkpoints import checkpoint_path

    path = checkpoint_path("digits")
    subject = Subject(load_flow("digits"), path, "digits", "digits", tmp_path)
    ids = {describe(probe, subject)["cell_id"] for probe in (listed, text, build_probe("redundancy", o="0,3"))}
    assert len(ids) == 2
