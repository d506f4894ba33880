"""What `harness list` shows."""

import pytest
from click.testing import CliRunner

from harness.cli import app
from harness.cli.catalog import KINDS, catalog
from harness.datasets import datasets
from harness.decoders import decoders
from harness.errors import HarnessError
from harness.flows.checkpoints import shipped
from harness.flows.published import published
from harness.measure.matrix import matrices


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


def test_an_unknown_kind_gets_a_hint():
    with pytest.raises(HarnessError, match="did you mean 'decoders'"):
        catalog("decoder")
