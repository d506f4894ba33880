"""What holds for every feature network that is shipped: size, card, sanity table, reference features."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from harness.datasets import datasets, load_dataset
from harness.metrics.features import ASSETS, NetworkFeatures, shipped_network
from harness.metrics.networks import RECIPES
from harness.metrics.quality import ReferenceFeatures, shipped_reference

NETWORKS = sorted(ASSETS.glob("features-*.safetensors"))
NAMES = [path.stem.removeprefix("features-") for path in NETWORKS]
by_network = pytest.mark.parametrize("path", NETWORKS, ids=NAMES)


def test_every_recipe_is_shipped():
    assert set(NAMES) == set(RECIPES)


@by_network
def test_network_and_its_files(path):
    extractor = NetworkFeatures(path)
    name = path.stem.removeprefix("features-")
    assert path.stat().st_size <= 3e6
    assert 64 <= extractor.dim <= 256
    accuracy = float(extractor.metadata["held_out_accuracy"])
    assert (
        f"held-out accuracy on {shipped_reference(name, extractor).statistics.count:,} images: **{accuracy:.1%}**"
        in (path.with_suffix(".md").read_text())
    )
    for dataset in extractor.datasets:
        assert dataset in datasets.names()
        assert shipped_network(dataset).name == extractor.name
    config = json.loads(extractor.metadata["config"])
    size = 2 * config["image_size"]  # a flow's images may be larger than the network's
    assert extractor(torch.zeros(2, config["image_channels"], size, size)).shape == (2, extractor.dim)


@by_network
def test_the_committed_table_rises(path):
    """FID for every change; KID too, unless the card owns that these features do not see the change."""
    table = pd.read_csv(path.with_suffix(".csv"))
    card = path.with_suffix(".md").read_text()
    assert set(table.change) == {"noise", "blur", "modes dropped"}
    for change, rows in table.groupby("change"):
        rows = rows.sort_values("level")
        assert (np.diff(rows.fid) > 0).all(), rows
        unseen = f"Not seen by these features: {change}" in card
        assert unseen or (np.diff(rows.kid) > 0).all(), rows
        assert not (unseen and change != "modes dropped")
    held_out = table[table.level == 0].iloc[0]
    assert held_out.fid < 0.05 * table.fid.max()
    assert abs(held_out.kid) < 3 * held_out.kid_std


@by_network
def test_a_reference_compared_with_itself_is_at_no_distance(path):
    from harness.metrics.fid import frechet_distance

    extractor = NetworkFeatures(path)
    reference = shipped_reference(path.stem.removeprefix("features-"), extractor)
    scale = np.trace(reference.statistics.covariance)
    assert abs(frechet_distance(reference.statistics, reference.statistics)) < 1e-6 * scale
    assert np.abs(reference.features.mean(axis=0) - reference.statistics.mean).max() < 0.25 * np.sqrt(scale)


@pytest.mark.parametrize("name", [pytest.param("cifar10-jpeg", marks=pytest.mark.slow), "afhq-cat"])
def test_the_reference_is_of_the_real_test_split(name, shared):
    extractor = shipped_network(name)
    size = extractor.network.config.image_size
    images = load_dataset(name, "test", root=shared / "data", size=size)
    computed = ReferenceFeatures.compute(images, extractor, kept=1000)
    shipped = shipped_reference(name, extractor)
    assert shipped.statistics.count == len(images)
    np.testing.assert_allclose(shipped.statistics.mean, computed.statistics.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(shipped.features, computed.features, rtol=1e-2, atol=1e-3)
