"""What `harness list` shows."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

import harness
from harness.cli import app
from harness.cli.catalog import KINDS, catalog, details
from harness.datasets import datasets
from harness.decoders import decoders
from harness.errors import HarnessError
from harness.flows.checkpoints import shipped
from harness.flows.published import published
from harness.measure.matrix import matrices
from harness.measure.probes.probe import probes
from harness.options import options_of


def test_everything_that_has_a_name_is_listed_once_with_a_line():
    entries = catalog()
    assert list(entries) == list(KINDS)
    assert [entry.name for entry in entries["decoders"]] == decoders.names()
    assert [entry.name for entry in entries["datasets"]] == datasets.names()
    assert [entry.name for entry in entries["matrices"]] == sorted(matrices())
    assert {entry.name for entry in entries["flows"]} >= {*shipped(), *published(), "(tarflow)", "(zuko)"}
    origins = {"harness", *(known.publisher for known in published().values())}
    for kind in ("decoders", "flows", "datasets", "matrices"):
        assert all(entry.line and entry.origin in origins for entry in entries[kind]), entries[kind]


def test_one_kind_alone():
    output = CliRunner().invoke(app, ["list", "decoders"], standalone_mode=False).output
    assert output.startswith("decoders:\n") and "sejd" in output and "datasets" not in output


def call(*arguments):
    result = CliRunner().invoke(app, ["list", *arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


@pytest.mark.parametrize(("kind", "registry"), [("decoders", decoders), ("datasets", datasets), ("probes", probes)])
def test_the_options_of_whatever_is_registered_have_a_type_a_default_and_a_meaning(kind, registry):
    for name in registry.names():
        found = details(kind, name)
        assert found["about"] and found["options"]
        for option in found["options"]:
            assert option["help"] and option["type"], (name, option)
            assert not option["required"], "a shipped one is built without options"


def test_the_options_of_a_decoder_as_they_are_printed():
    output = call("decoders", "sejd")
    assert output.startswith("sejd: Selective Jacobi decoding")
    assert "  tau  (number >= 0; default: 0.5)\n      stopping threshold" in output
    assert '  initial  (zeros|normal|input|fitted; default: "zeros")\n' in output
    assert "  sequential_layers  (list of integer >= 1; default: [1])\n" in output
    assert "  max_iterations  (integer >= 1 or none; default: none)\n" in output
    assert max(map(len, output.splitlines()[1:])) <= 100


def test_options_of_a_class_of_ones_own():
    found = {option.name: option for option in options_of(Own)}
    assert [*found] == ["width", "names", "note"]
    assert (found["width"].required, found["width"].type, found["width"].help) == (True, "integer", "how wide")
    assert (found["names"].default, found["note"].help) == (["a"], "")


@dataclass(kw_only=True)
class Own:
    """A class of one's own.

    Args:
        width: how wide
    """

    width: int
    names: list[str] = field(default_factory=lambda: ["a"])
    note: Any = None


@pytest.mark.parametrize(
    ("kind", "name", "parts"),
    [
        ("flows", "digits", ["digits: A TarFlow", "num_tokens: 64", "image_shape: (1, 8, 8)"]),
        ("flows", "tarflow-imagenet-64", ["Published TarFlow"]),
        ("matrices", "quickstart", ["profiles: ['full', 'fast']", "sequential"]),
        ("baselines", "digits-cpu", ["matrix quickstart", "batch_size: [1, 16, 64]"]),
        ("datasets", "cifar10", ["CIFAR-10", "  root  (file or text or none; default: none)"]),
        ("probes", "crm", ["tables: ", "  seed  (integer >= 0; default: 0)\n      Of the latents."]),
    ],
)
def test_one_of_every_kind_is_told_by_its_name(kind, name, parts):
    output = call(kind, name)
    assert all(part in output for part in parts), output
    assert json.loads(call(kind, name, "--json"))["name"] == name


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_not_there_gets_a_hint(kind):
    with pytest.raises(HarnessError, match="unknown"):
        call(kind, "nothing-of-the-kind")


def test_lists_as_json():
    entries = json.loads(call("--json"))
    assert list(entries) == list(KINDS)
    assert {"sejd", "ujd"} <= {entry["name"] for entry in entries["decoders"]}
    assert list(json.loads(call("matrices", "--json"))) == ["matrices"]


def test_the_schema_of_a_matrix_is_json():
    schema = json.loads(CliRunner().invoke(app, ["schema"], standalone_mode=False).output)
    assert {"datasets", "decoders", "grid", "profiles"} <= set(schema["properties"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "quick"], ["quickstart"]),
        (["run", "tarflow-afhq"], ["tarflow-afhq-256"]),
        (["sample", "digi"], ["digits"]),
        (["sample", "digits", "--decoder", "se"], ["sejd", "sequential"]),
        (["tune", "digi"], ["digits"]),
        (["check", "seq"], ["sequential"]),
        (["probe", "red"], ["redundancy"]),
        (["probe", "redundancy", "digi"], ["digits"]),
        (["study", "t"], ["tau", "training"]),
        (["study", "al"], ["all"]),
        (["list", "dec"], ["decoders"]),
        (["list", "decoders", "sej"], ["sejd"]),
        (["train", "dig"], ["digits"]),
        (["compare", "digits-"], ["digits-cpu"]),
        (["run", "quickstart", "--against", "digits-"], ["digits-cpu"]),
    ],
)
def test_the_shell_completes_names(words, expected):
    *before, incomplete = words
    items = ShellComplete(app, {}, "harness", "_HARNESS_COMPLETE").get_completions(before, incomplete)
    assert [item.value for item in items if item.type == "plain"] == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(shell):
    environment = os.environ | {"_HARNESS_COMPLETE": f"{shell}_source"}
    command = [sys.executable, "-m", "harness"]
    script = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert f"_HARNESS_COMPLETE={shell}_complete" in script


def test_the_package_is_run_as_a_module():
    done = subprocess.run([sys.executable, "-m", "harness", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"harness, version {harness.__version__}\n"


def test_an_unknown_kind_gets_a_hint():
    with pytest.raises(HarnessError, match="did you mean 'decoders'"):
        catalog("decoder")
