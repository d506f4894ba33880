"""Distances of whole sets of images: sanity on real digits, non-finite samples, and the cache of references."""

import numpy as np
import pytest
import torch

from harness.datasets import Images, load_dataset
from harness.metrics.features import shipped_network
from harness.metrics.fid import FeatureStatistics, frechet_distance, kernel_distance
from harness.metrics.quality import ReferenceFeatures, distances, features_of, reference_features, shipped_reference
from harness.metrics.sanity import sanity_table


@pytest.fixture(scope="module")
def extractor():
    return shipped_network("digits")


@pytest.fixture(scope="module")
def splits():
    return load_dataset("digits", "train"), load_dataset("digits", "test")


@pytest.fixture(scope="module")
def table(extractor, splits):
    return sanity_table(*splits, extractor)


def against(real, images, extractor, cache):
    return distances(features_of(images, extractor), reference_features(real, extractor, cache))


@pytest.mark.parametrize("change", ["noise", "blur", "modes dropped"])
@pytest.mark.parametrize("distance", ["fid", "kid"])
def test_distance_rises_with_what_is_wrong(table, change, distance):
    values = table[table.change == change].sort_values("level")[distance].to_numpy()
    assert len(values) == 5
    assert (np.diff(values) > 0).all(), values


def test_real_held_out_images_are_near_zero(table):
    held_out, worst = table[table.level == 0].iloc[0], table.groupby("change").fid.max()
    assert held_out.fid < 0.3 * worst.min()
    assert held_out.fid < 0.03 * worst.max()
    assert abs(held_out.kid) < 3 * held_out.kid_std


def test_batches_and_one_call_agree(extractor, splits, tmp_path):
    train, test = splits
    images = test.scaled()
    whole = against(train, images, extractor, tmp_path)
    features = np.concatenate([features_of(batch, extractor) for batch in images.split(50)])
    in_batches = distances(features, ReferenceFeatures.compute(train, extractor))
    assert in_batches["fid"] == pytest.approx(whole["fid"], rel=1e-5)
    assert in_batches["kid"] == pytest.approx(whole["kid"], rel=1e-4)
    assert whole["num_samples"] == len(test)
    assert whole["num_reference"] == len(train)
    assert whole["fid_features"] == extractor.name


def test_distances_are_those_of_the_features(extractor, splits, tmp_path):
    train, test = splits
    found = against(train, test.scaled(), extractor, tmp_path)
    a, b = extractor(test.scaled()).numpy(), extractor(train.scaled()).numpy()
    assert found["fid"] == pytest.approx(frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b)), rel=1e-4)
    assert (found["kid"], found["kid_std"]) == pytest.approx(kernel_distance(a, b)[:2], rel=1e-3)


def test_nonfinite_samples_are_kept_out(extractor, splits, tmp_path):
    train, test = splits
    images = test.scaled()[:100]
    expected = against(train, images[2:], extractor, tmp_path)
    images[0, 0, 0, 0], images[1, 0, 3, 3] = float("nan"), float("inf")
    found = against(train, images, extractor, tmp_path)
    assert found["num_samples"] == 98
    assert found["fid"] == pytest.approx(expected["fid"], rel=1e-5)


def test_too_few_samples_have_no_distance(extractor, splits, tmp_path):
    found = against(splits[0], torch.full((5, 1, 8, 8), float("nan")), extractor, tmp_path)
    assert (found["fid"], found["kid"], found["kid_std"]) == (None, None, None)
    assert found["num_samples"] == 0


def test_features_of_different_networks_never_meet(extractor, splits, tmp_path):
    reference = ReferenceFeatures.compute(splits[1], extractor)
    reference.save(tmp_path / "reference")
    assert_same(reference, ReferenceFeatures.load(tmp_path / "reference", extractor))
    other = Counting(extractor)
    other.name = "another"
    assert ReferenceFeatures.load(tmp_path / "reference", other) is None


class Counting:
    """An extractor that counts the images it is given."""

    def __init__(self, extractor):
        self.inner, self.name, self.dim, self.images = extractor, extractor.name, extractor.dim, 0

    def __call__(self, images):
        self.images += len(images)
        return self.inner(images)


def assert_same(a, b):
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.statistics.scatter, b.statistics.scatter)
    assert a.statistics.count == b.statistics.count


def test_references_are_computed_once(extractor, splits, tmp_path):
    counting = Counting(extractor)
    first = reference_features(splits[1], counting, tmp_path)
    again = reference_features(splits[1], counting, tmp_path)
    assert counting.images == len(splits[1])
    assert_same(first, again)
    fewer = Images(splits[1].pixels[:50], splits[1].labels[:50])
    assert reference_features(fewer, counting, tmp_path).statistics.count == 50


def test_other_weights_are_another_reference(extractor, splits, tmp_path):
    reference_features(splits[1], extractor, tmp_path)
    other = Counting(extractor)
    other.name = "features-digits@retrained"
    reference_features(splits[1], other, tmp_path)
    assert other.images == len(splits[1])


@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "nan"])
def test_a_corrupt_reference_is_computed_again(extractor, splits, tmp_path, damage):
    first = reference_features(splits[1], extractor, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    content = path.read_bytes()
    if damage == "nan":
        path.write_bytes(content[:-800] + np.full(100, np.nan).tobytes())
    else:
        path.write_bytes({"cut short": content[:-1], "empty": b"", "text": b"no tensors"}[damage])
    counting = Counting(extractor)
    assert_same(first, reference_features(splits[1], counting, tmp_path))
    assert counting.images == len(splits[1])
    assert path.read_bytes() == content


def test_an_unwritable_cache_costs_only_time(extractor, splits, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    assert reference_features(splits[1], extractor, blocked).statistics.count == len(splits[1])


def test_large_references_keep_a_seeded_part_for_kid(extractor, splits):
    first, again = (ReferenceFeatures.compute(splits[1], extractor, kept=100) for _ in range(2))
    assert first.features.shape == (100, extractor.dim)
    assert first.statistics.count == len(splits[1])
    assert_same(first, again)


def test_the_shipped_reference_is_the_test_split(extractor, splits):
    shipped = shipped_reference("digits", extractor)
    computed = ReferenceFeatures.compute(splits[1], extractor)
    assert shipped.statistics.count == len(splits[1])
    np.testing.assert_allclose(shipped.statistics.mean, computed.statistics.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(shipped.features, computed.features, rtol=1e-3, atol=1e-4)


def test_a_shipped_reference_of_other_features_is_not_used(extractor):
    other = Counting(extractor)
    other.name = "features-digits@retrained"
    assert shipped_reference("digits", other) is None
    assert shipped_reference("unheard-of", extractor) is None
