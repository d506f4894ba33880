"""Verdicts of quality on simulated features: rarely wrong where nothing differs, and right where something does.

Features are Gaussian, those of the samples shifted from the real ones so that FID is a fifth of their variance, as it
is of the shipped flows; a decoder moves every sample by noise and by a common direction, hard samples farther.
"""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from analysis.quality import INVALID, UNDECIDED, VALID, valid_cells
from harness.metrics.fid import FeatureStatistics, fids, frechet_distance, rise_interval

DIM, NOISE = 24, 0.05
TRIES = 60

MIXING = np.random.default_rng(5).normal(size=(DIM, DIM)) / DIM**0.5 * np.logspace(0, -1, DIM)[:, None]
REFERENCE = FeatureStatistics.of(np.random.default_rng(6).normal(size=(5000, DIM)) @ MIXING)
LENGTH = (0.2 * np.trace(REFERENCE.covariance)) ** 0.5
SHIFT, DIRECTION = (LENGTH * v / np.linalg.norm(v) for v in np.random.default_rng(7).normal(size=(2, DIM)) @ MIXING)


def drawn(rng, count, moved):
    """(count, DIM) features of exact samples, and of decoded ones of the same latents."""
    exact, noise = 1.1 * rng.normal(size=(2, count, DIM)) @ MIXING + SHIFT
    if not moved:  # as much noise as they lose of their own: the same distribution
        return exact, SHIFT + (1 - NOISE**2) ** 0.5 * (exact - SHIFT) + NOISE * (noise - SHIFT)
    hard = rng.lognormal(0, 0.7, (count, 1))
    return exact, exact + hard * (NOISE * (noise - SHIFT) + moved * DIRECTION)


@cache
def moved_by(rise):
    """How far along the direction samples must be moved so that their FID, of very many, rises so much."""

    def risen(moved):
        exact, decoded = (FeatureStatistics.of(x) for x in drawn(np.random.default_rng(8), 100_000, moved))
        return frechet_distance(REFERENCE, decoded) / frechet_distance(REFERENCE, exact) - 1

    low, high = 1e-3, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if risen(middle) < rise else (low, middle)
    return low


def verdicts(count, moved, limit, deviation=0.05):
    """Shares of `TRIES` cells that are called valid, undecided and invalid."""
    rng, rows = np.random.default_rng(count), []
    for number in range(TRIES):
        exact, decoded = (fids(x, REFERENCE) for x in drawn(rng, count, moved))
        low, high = rise_interval(decoded, exact)
        shared = {"group_id": number, "fid_features": "f", "num_samples": count, "reference_digest": "r"}
        shared |= {"status": "ok", "nonfinite_samples": 0, "deviation_rmse": deviation}
        shared |= {"deviation_low": 0.9 * deviation, "deviation_high": 1.1 * deviation}
        rows.append(shared | {"decoder": "sequential", "fid": exact[0]})
        rows.append(shared | {"decoder": "sejd", "fid": decoded[0], "fid_rise_low": low, "fid_rise_high": high})
    quality = pd.DataFrame(rows)
    found = valid_cells(quality, {"max_deviation": 0.1, "max_fid_increase": limit})["valid"]
    assert found[quality["decoder"] == "sequential"].eq(VALID).all()
    found = found[quality["decoder"] == "sejd"]
    return [found.eq(state).mean() for state in (VALID, UNDECIDED, INVALID)]


@pytest.mark.parametrize("count", [256, 2048])
@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_where_nothing_differs_fewer_than_one_in_twenty_is_called_invalid(count, limit):
    valid, _, invalid = verdicts(count, 0, limit)
    assert invalid < 0.05
    assert valid == 1.0 or limit == 0.0, "and a tolerance of 5 % is decided"


def test_a_rise_of_a_tenth_is_found_in_nine_of_ten_at_two_thousand_samples():
    valid, _, invalid = verdicts(2048, moved_by(0.10), 0.05)
    assert invalid >= 0.9 and valid == 0.0


def test_few_samples_do_not_decide_a_rise_just_beyond_the_limit_but_do_not_call_it_valid():
    valid, undecided, _ = verdicts(256, moved_by(0.06), 0.05)
    assert undecided > 0.5 and valid < 0.05
    assert verdicts(255, 0, 0.05)[1] == 1.0, "too few for any verdict"


@pytest.mark.parametrize(
    ("low", "high", "state", "why"),
    [
        (0.05, 0.09, VALID, None),
        (0.05, 0.11, UNDECIDED, "deviation 0.08 (0.05 to 0.11), allowed 0.1"),
        (0.11, 0.14, INVALID, "deviation 0.08 (0.11 to 0.14), allowed 0.1"),
        (np.nan, np.nan, UNDECIDED, "deviation 0.08 (no interval), allowed 0.1"),
    ],
)
def test_a_deviation_is_judged_by_its_interval(low, high, state, why):
    row = {"group_id": "g", "decoder": "sejd", "fid": None, "fid_features": None, "num_samples": 16, "status": "ok"}
    row |= {"reference_digest": None, "nonfinite_samples": 0, "deviation_rmse": 0.08}
    quality = pd.DataFrame([row | {"deviation_low": low, "deviation_high": high}])
    (found,) = valid_cells(quality, {"max_deviation": 0.1, "max_fid_increase": 0.05}).to_dict("records")
    assert found == {"valid": state, "why": why}
    assert valid_cells(quality, {})["valid"][0] is None, "nothing was stated"
