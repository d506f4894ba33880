"""Fits with intervals: an order of convergence from successive errors, an exponent from a power law."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Slope(NamedTuple):
    """A fitted slope with its 95 % interval, the intercept, and the points it rests on."""

    value: float
    low: float
    high: float
    intercept: float
    points: int


NO_FIT = Slope(np.nan, np.nan, np.nan, np.nan, 0)


def slope(x: np.ndarray, y: np.ndarray) -> Slope:
    """Least-squares slope of y on x, both (n,), with Student's interval; two points give a slope without one."""
    from scipy.stats import linregress, t

    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(np.unique(x)) < 2:
        return NO_FIT
    fit = linregress(x, y)
    half = t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * fit.stderr if len(np.unique(x)) > 2 else np.nan
    return Slope(float(fit.slope), float(fit.slope - half), float(fit.slope + half), float(fit.intercept), len(x))


def power(x: np.ndarray, y: np.ndarray) -> Slope:
    """The exponent p of y = c x**p, from positive points only."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    positive = (x > 0) & (y > 0)
    return slope(np.log(x[positive]), np.log(y[positive]))


def order_of_convergence(curves: list[np.ndarray], floor: float = 1e-6) -> Slope:
    """The order p in e[t+1] = c e[t]**p with its interval: p > 1 is superlinear, p = 1 linear.

    Each curve holds (iterations,) errors of one decode; those below the share `floor` of its largest are rounding.
    """
    before, after = [], []
    for errors in curves:
        errors = np.asarray(errors, dtype=float)
        if len(errors) and np.nanmax(errors) > 0:
            kept = np.where(errors > floor * np.nanmax(errors), errors, np.nan)
            before.append(kept[:-1])
            after.append(kept[1:])
    return power(np.concatenate(before), np.concatenate(after)) if before else NO_FIT
