"""Bounds of a root mean square."""

import numpy as np
import pytest

from harness.fitting.bounds import root_mean


def test_bounds_of_a_root_mean_square_hold_as_often_as_they_say():
    rng = np.random.default_rng(0)
    found = [root_mean(rng.normal(size=256) ** 2) for _ in range(400)]
    above, below = np.mean([[x.lower > 1, x.upper < 1] for x in found], axis=0)
    assert 0.01 < above < 0.1 and 0.01 < below < 0.1
    alike = np.repeat(rng.normal(size=64) ** 2, 4)
    assert root_mean(alike, 4) == pytest.approx(root_mean(alike[::4]))
    assert root_mean(alike, 4).upper > root_mean(alike).upper > root_mean(alike).value > root_mean(alike).lower
    assert root_mean(np.array([1.0, np.nan])).upper == np.inf
