"""FID and KID against clean-fid's own numbers, and what they must satisfy whatever the features."""

import warnings

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.metrics.fid import (
    FeatureStatistics,
    difference_interval,
    fids,
    frechet_distance,
    kernel_distance,
    rise_interval,
)
from harness.metrics.torchvision_compat import declare_missing_operators


def features(n, dim, seed, shift=0.0):
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dim, dim)) / dim**0.5
    return generator.normal(size=(n, dim)) @ mixing * (1 + shift) + shift


@pytest.fixture(scope="module")
def cleanfid():
    declare_missing_operators()
    import cleanfid.fid

    return cleanfid.fid


def cleanfid_frechet(cleanfid, a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return cleanfid.frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
        except TypeError:
            pytest.skip("this SciPy has no sqrtm(disp=...), which clean-fid calls")


@pytest.mark.parametrize("dim", [2, 16, 64])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_frechet_distance_is_cleanfids(cleanfid, dim, shift):
    a, b = features(400, dim, 0), features(300, dim, 1, shift)
    ours = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert ours == pytest.approx(cleanfid_frechet(cleanfid, a, b), rel=1e-9)


def test_frechet_distance_of_known_gaussians():
    """Diagonal covariances: the closed form is a sum over dimensions."""
    rows = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    a, b = FeatureStatistics.of(rows), FeatureStatistics.of(rows * [2.0, 3.0] + [5.0, 0.0])
    deviation = np.sqrt(4 / 3)
    assert frechet_distance(a, b) == pytest.approx(25 + (deviation * 1) ** 2 + (deviation * 2) ** 2)


def test_frechet_distance_survives_singular_covariances():
    a, b = features(20, 64, 0), features(20, 64, 1)  # fewer samples than dimensions
    statistics = FeatureStatistics.of(a)
    assert abs(frechet_distance(statistics, statistics)) < 1e-5
    assert np.isfinite(frechet_distance(statistics, FeatureStatistics.of(b)))
    constant = FeatureStatistics.of(np.ones((5, 64)))
    assert frechet_distance(constant, constant) == 0.0


def test_frechet_distance_is_symmetric():
    a, b = FeatureStatistics.of(features(200, 8, 0)), FeatureStatistics.of(features(100, 8, 1, 0.5))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_covariance_is_the_unbiased_one(offset):
    whole = features(50, 5, 3) + offset
    found = FeatureStatistics.of(whole)
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(whole.T), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [40, 200])
def test_kernel_distance_is_cleanfids(cleanfid, size):
    """With one subset that is the whole of both sets, clean-fid's estimate has no randomness left."""
    a, b = features(size, 32, 0), features(size, 32, 1, 0.1)
    expected = cleanfid.kernel_distance(a, b, num_subsets=1, max_subset_size=size)
    assert kernel_distance(a, b).value == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_over_many_pairs_of_rows():
    """Rows are summed a block at a time: more than one block gives what one would."""
    a, b = features(1500, 3, 0), features(1100, 3, 1)
    n, m = len(a), len(b)
    kernel = lambda x, y: (x @ y.T / 3 + 1) ** 3  # noqa: E731
    within_a, within_b = kernel(a, a), kernel(b, b)
    expected = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    expected += (within_b.sum() - np.trace(within_b)) / (m * (m - 1)) - 2 * kernel(a, b).mean()
    assert kernel_distance(a, b).value == pytest.approx(expected, abs=1e-12)


def test_kernel_distance_is_unbiased_and_its_error_honest():
    """Over repeated draws: mean zero for equal distributions, and the stated error matches the spread."""
    same = [kernel_distance(features(60, 8, 2 * i), features(90, 8, 2 * i + 1)) for i in range(200)]
    values = np.array([distance.value for distance in same])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    apart = [kernel_distance(features(60, 8, 2 * i), features(90, 8, 2 * i + 1, 0.3)) for i in range(200)]
    spread = np.std([distance.value for distance in apart])
    assert np.mean([distance.standard_error for distance in apart]) == pytest.approx(spread, rel=0.25)


def test_the_jackknife_leaves_one_out():
    """The closed form equals leaving each sample out in turn."""
    a, b = features(12, 4, 0), features(9, 4, 1, 0.2)
    without_a = np.array([kernel_distance(np.delete(a, i, 0), b).value for i in range(len(a))])
    without_b = np.array([kernel_distance(a, np.delete(b, i, 0)).value for i in range(len(b))])
    variance = (len(a) - 1) * without_a.var() + (len(b) - 1) * without_b.var()
    assert kernel_distance(a, b).standard_error == pytest.approx(variance**0.5, rel=1e-9)


def test_thinning_is_seeded():
    a, b = features(100, 4, 0), features(100, 4, 1)
    first, again, other = (kernel_distance(a, b, max_samples=30, seed=seed) for seed in (0, 0, 1))
    assert first[:2] == again[:2]
    assert first[:2] != other[:2]


def test_bad_features_are_refused():
    with pytest.raises(HarnessError, match="finite"):
        FeatureStatistics.of(np.array([[1.0, np.nan]]))
    with pytest.raises(HarnessError, match="at least 2"):
        frechet_distance(FeatureStatistics.of(np.ones((1, 2))), FeatureStatistics.of(np.ones((3, 2))))
    with pytest.raises(HarnessError, match="2 and 3 dimensions"):
        frechet_distance(FeatureStatistics.of(np.ones((4, 2))), FeatureStatistics.of(np.ones((4, 3))))
    with pytest.raises(HarnessError, match="at least 3 samples"):
        kernel_distance(np.ones((2, 4)), np.ones((5, 4)))


@pytest.mark.parametrize("dim", [4, 120], ids=["more samples than dimensions", "fewer"])
def test_fids_are_those_of_the_samples_that_are_left(dim):
    reference, x = FeatureStatistics.of(features(400, dim, 0, 0.1)), features(100, dim, 1)
    found = fids(x, reference)
    expected = [frechet_distance(reference, FeatureStatistics.of(np.delete(x, range(i, i + 5), 0))) for i in (0, 95)]
    assert found[0] == pytest.approx(frechet_distance(reference, FeatureStatistics.of(x)), rel=1e-6)
    assert (found[1], found[-1]) == pytest.approx(expected, rel=1e-6)


def test_the_interval_of_a_rise_is_of_what_the_samples_do_not_share():
    reference, exact = FeatureStatistics.of(features(400, 4, 0, 0.1)), features(100, 4, 1)
    near = fids(exact + 0.02 * np.random.default_rng(3).normal(size=exact.shape), reference)
    exact, other = fids(exact, reference), fids(features(100, 4, 2), reference)
    low, high = rise_interval(near, exact)
    apart = rise_interval(other, exact)
    assert (low + high) / 2 == pytest.approx(near[0] / exact[0] - 1) and high - low < 0.3 * (apart[1] - apart[0])
    assert rise_interval(exact, exact) == (0.0, 0.0)


def test_the_interval_of_a_kid_difference_covers_none_where_there_is_none():
    """Samples that are off by as much noise as they lose of their own: 300 experiments, with a fixed seed."""
    rng, reference, held = np.random.default_rng(4), features(200, 6, 0, 0.2), 0
    for _ in range(300):
        exact, noise = rng.normal(size=(2, 100, 6))
        before, after = (kernel_distance(x, reference) for x in (exact, 0.9 * exact + 0.19**0.5 * noise))
        low, high = difference_interval(after, before)
        held += low <= 0 <= high
    assert 0.92 <= held / 300 <= 0.98
