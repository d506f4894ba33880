"""Published checkpoints: what is known of them agrees with itself; they are found by name or told where to get."""

from pathlib import Path

import pytest
import torch
from test_checkpoints import published_state

from harness.errors import CheckpointError
from harness.files import cache_folder
from harness.flows import load_flow
from harness.flows.checkpoints import checkpoint_path, training_noise
from harness.flows.published import published, published_as, sigma_in_name
from harness.flows.tarflow import TarFlow, TarFlowConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)


@pytest.fixture
def small(tmp_path):
    """A small flow under the name of a published file, in the data root."""
    flow = TarFlow(TarFlowConfig(image_channels=3, image_size=8, patch=2, channels=64, blocks=2, layers_per_block=1))
    path = tmp_path / "data" / "checkpoints" / published()["tarflow-afhq-256"].file
    path.parent.mkdir(parents=True)
    torch.save(published_state(flow), path)
    return path


@pytest.mark.parametrize("known", published().values(), ids=published())
def test_a_file_is_called_what_it_is(known, tmp_path):
    patch, channels, blocks, layers = known.shape.split("-")
    dataset, _, shape = known.file.partition("_model_")
    assert shape == f"{patch}_{channels}_{blocks}_{layers}_{known.sigma}.pth" and dataset == known.dataset
    assert training_noise(tmp_path / known.file) == known.sigma
    assert known.image_size % int(patch) == 0
    assert known.guidance is None or known.classes or known.guidance.temperature != 1
    assert published_as(f"anywhere/{known.file}") == known


def test_a_name_that_tells_no_noise():
    for name in ("imagenet64_model_2_768_8_8_uniform.pth", "model_0.07.pth", "mine.pth"):
        assert sigma_in_name(Path(name)) is None


def test_by_name_from_the_data_root(small, tmp_path, monkeypatch):
    assert checkpoint_path("tarflow-afhq-256", tmp_path / "data") == small
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    assert load_flow("tarflow-afhq-256").num_tokens == 16


def test_by_name_from_the_cache(small):
    kept = cache_folder() / "checkpoints" / small.name
    kept.parent.mkdir(parents=True)
    small.rename(kept)
    assert checkpoint_path("tarflow-afhq-256") == kept


def test_ones_own_by_its_stem(small, tmp_path):
    mine = small.rename(small.with_name("mine.pth"))
    assert checkpoint_path("mine", tmp_path / "data") == mine


def test_one_that_is_not_there_is_told_where_to_get_and_put_it(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        checkpoint_path("tarflow-afhq-256", tmp_path)
    sentence = str(caught.value)
    known = published()["tarflow-afhq-256"]
    assert known.url in sentence and str(cache_folder() / "checkpoints" / known.file) in sentence
    with pytest.raises(CheckpointError, match="did you mean 'tarflow-afhq-256'"):
        checkpoint_path("tarflow-afhq256")


def test_what_is_doubtful_of_a_file(small):
    known, flow = published()["tarflow-afhq-256"], load_flow(small)
    assert "not of the shape" in known.doubts(flow, "0" * 64)
    with torch.device("meta"):
        right = TarFlow(TarFlowConfig(3, 256, 8, 768, 8, 8, num_classes=3))
    assert f"SHA-256 is {'0' * 64}" in known.doubts(right, "0" * 64)
