"""Flows with random weights, by the name of their shape."""

import platformdirs
import pytest
import torch

from harness.decoders import build_decoder
from harness.errors import CheckpointError
from harness.flows import load_flow
from harness.flows.checkpoints import checkpoint_path, digest
from harness.flows.tarflow import TarFlowConfig

NAME = "random:4-64-2-1@16"
DIGEST = "9038e3d72b2599b12ccaa64c4050f334dd0e6eda8bf5f14ee7a8311b9744c559"
"""Of the file: a cell that is measured elsewhere is the same cell."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_name_gives_the_shape_and_nothing_changes_the_weights():
    flow = load_flow(NAME)
    assert flow.config == TarFlowConfig(3, 16, 4, 64, 2, 1)
    first = checkpoint_path(NAME)
    assert first.is_relative_to(platformdirs.user_cache_path("nf-decoding-harness"))
    written = first.stat().st_mtime_ns
    assert checkpoint_path(NAME).stat().st_mtime_ns == written  # not again
    assert digest(first) == DIGEST


def test_its_tokens_depend_on_each_other():
    flow = load_flow(NAME)
    latents = flow.sample_latents(4, torch.Generator().manual_seed(0))
    traces = build_decoder("ujd", tau=0.01).decode(flow, latents).layers
    assert all(trace.iterations > 4 for trace in traces)


@pytest.mark.parametrize("name", ["random:4-64-2@16", "random:4-64-0-1@16", "random:5-64-2-1@16", "random:4-65-2-1@16"])
def test_a_shape_that_is_none_is_refused_in_one_sentence(name):
    with pytest.raises(CheckpointError, match="random:") as caught:
        load_flow(name)
    assert "\n" not in str(caught.value)
