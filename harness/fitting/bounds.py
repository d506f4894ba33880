"""How surely a deviation is known from a few samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RootMean(NamedTuple):
    """The root of a mean square, and its one-sided bounds."""

    value: float
    lower: float
    upper: float


def root_mean(squares: np.ndarray, together: int = 1, confidence: float = 0.95) -> RootMean:
    """The root of a mean square of samples, and what it is at least and at most, each with this confidence.

    By Student's t; where a square is not finite nothing is known.

    Args:
        squares: (samples,) such as each sample's mean squared deviation.
        together: samples that depend on each other, one after the other; those count as one.

    Example:
        >>> root_mean(np.array([4.0, 4.0, 4.0]))
        RootMean(value=2.0, lower=2.0, upper=2.0)
    """
    from scipy.stats import t as student

    means = np.array([squares[first : first + together].mean() for first in range(0, len(squares), together)])
    if not np.isfinite(means).all():
        return RootMean(np.inf, 0.0, np.inf)
    mean = means.mean()
    reach = student.ppf(confidence, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    return RootMean(*(float(np.sqrt(max(0.0, square))) for square in (mean, mean - reach, mean + reach)))
