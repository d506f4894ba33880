"""Fits recover what is known, and say nothing where there is nothing to fit."""

import numpy as np
import pytest

from analysis.regression import order_of_convergence, power, slope


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0])
def test_the_interval_of_the_order_covers_the_truth_as_often_as_it_says(order):
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        errors = [0.8]
        for _ in range(7):
            errors.append(0.5 * errors[-1] ** order * rng.lognormal(0, 0.05))
        fit = order_of_convergence([np.array(errors)], floor=1e-12)
        held += fit.low <= order <= fit.high
    assert held >= 88


def test_rounding_is_no_convergence():
    errors = np.array([1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, *[3e-8] * 20])
    assert order_of_convergence([errors]).value == pytest.approx(1.0)
    assert order_of_convergence([errors], floor=0.0).value != pytest.approx(1.0, abs=0.01)


def test_an_exact_power_is_found():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    fit = power(x, 3 * x**1.75)
    assert (fit.value, fit.low, fit.high) == pytest.approx((1.75, 1.75, 1.75))
    assert np.exp(fit.intercept) == pytest.approx(3)


def test_too_little_gives_no_fit_and_no_interval():
    assert np.isnan(slope(np.array([1.0]), np.array([1.0])).value)
    assert np.isnan(power(np.array([1.0, 2.0]), np.array([0.0, 1.0])).value)
    assert np.isnan(order_of_convergence([]).value)
    two = slope(np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    assert two.value == 2.0 and np.isnan(two.low)
