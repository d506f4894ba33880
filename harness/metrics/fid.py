"""Distances between two sets of features: FID and KID. What the features are is `harness.metrics.features`' business.

Both are estimates from finitely many samples. **FID is biased upwards at small N** (by a term of order dim / N), so two
values compare only at the same N and with the same features; KID is unbiased and comes with its standard error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError

Array = NDArray[np.floating]
Real = TypeVar("Real", bound=np.floating)

KID_SAMPLES = 10_000
"""Beyond this many samples of either set, KID is estimated from a seeded subset: its cost is quadratic."""

GROUPS = 20
"""Of consecutive samples, each left out in turn by the jackknife of `rise_interval`."""

_ROWS = 1024  # of a kernel matrix held at once


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,) and scatter (D, D) of a set of features: the sum of outer products of the centred ones."""

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def of(cls, features: Array) -> FeatureStatistics:
        """Statistics of (n, D) features, which must be finite."""
        if features.ndim != 2 or not np.isfinite(features).all():
            raise HarnessError("feature statistics need an (n, D) matrix of finite numbers")
        values = features.astype(np.float64)
        mean = values.mean(axis=0)
        return cls(len(values), mean, (values - mean).T @ (values - mean))

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(D, D) unbiased covariance, of two samples or more."""
        if self.count < 2:
            raise HarnessError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet distance of two Gaussians (Heusel et al., arXiv 1706.08500, Eq. 6).

    ``|m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)``. With the symmetric root ``C_a = R R``, the last trace is
    the sum of the square roots of the eigenvalues of ``R C_b R``: symmetric, so the eigenvalues are real whatever the
    rounding, and defined for singular covariances, where a root of the product itself is not.
    """
    if a.mean.shape != b.mean.shape:
        raise HarnessError(f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared")
    root = _root(a.covariance)
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(min=0)).sum()
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def fids(features: Array, reference: FeatureStatistics) -> NDArray[np.float64]:
    """(GROUPS + 1,) FIDs of (n, D) features: of all, then without each of `GROUPS` groups of consecutive rows.

    The root of the reference is taken once, and the trace in `frechet_distance` is the sum of the singular values of
    the centred features times that root, from the smaller of their two Gram matrices: `GROUPS + 1` decompositions of
    min(n, D) rows, a minute or more for Inception's 2,048 dimensions.
    """
    values, root = features.astype(np.float64), _root(reference.covariance)
    spread = values @ root

    def distance(kept: NDArray[np.bool_]) -> float:
        rows, across = values[kept], spread[kept] - spread[kept].mean(axis=0)
        mean = rows.mean(axis=0)
        gram = across.T @ across if len(rows) > len(mean) else across @ across.T
        cross = np.sqrt(np.linalg.eigvalsh(gram / (len(rows) - 1)).clip(min=0)).sum()
        total = np.trace(reference.covariance) + ((rows - mean) ** 2).sum() / (len(rows) - 1)
        return float(((mean - reference.mean) ** 2).sum() + total - 2 * cross)

    group = np.arange(len(values)) * GROUPS // len(values)
    return np.array([distance(group != number) for number in (-1, *range(GROUPS))])


def rise_interval(after: NDArray[np.float64], before: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of ``after / before - 1`` from two results of `fids`, of samples of the same latents, row by row.

    By the jackknife: the same groups are left out of both, so that what the samples have in common cancels, and a
    batch, which stops together, lies in one group or two (Efron & Tibshirani, An Introduction to the Bootstrap,
    Ch. 11).
    """
    from scipy.stats import t as student

    rises = after / before - 1
    reach = student.ppf(0.975, GROUPS - 1) * np.sqrt((GROUPS - 1) * rises[1:].var())
    return float(rises[0] - reach), float(rises[0] + reach)


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


class KernelDistance(NamedTuple):
    """An estimate of KID, its standard error, and (n,) what it is without each sample of the first set."""

    value: float
    standard_error: float
    without: NDArray[np.floating]


def kernel_distance(a: Array, b: Array, max_samples: int = KID_SAMPLES, seed: int = 0) -> KernelDistance:
    """Unbiased squared MMD with the kernel ``(x.y / D + 1)^3`` (KID; Binkowski et al., arXiv 1801.01401, Eq. 4).

    All pairs of samples are used, so no drawing of subsets adds noise of its own; sets larger than `max_samples` are
    thinned by a seeded draw without replacement. The standard error is the two-sample jackknife's: unlike the spread
    over overlapping subsets it does not shrink with how often one draws, nor vanish when a subset is the whole set.
    The sets are (n, D) and (m, D), of three samples or more each.
    """
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 3:
        raise HarnessError(f"KID needs at least 3 samples of the same dimension, got {a.shape} and {b.shape}")
    generator = np.random.default_rng(seed)
    a, b = (thinned(features, max_samples, generator).astype(np.float64) for features in (a, b))
    n, m = len(a), len(b)
    within_a, within_b = _kernel_sums(a, a)[0] - _diagonal(a), _kernel_sums(b, b)[0] - _diagonal(b)
    across_a, across_b = _kernel_sums(a, b)
    total_a, total_b, cross = within_a.sum(), within_b.sum(), across_a.sum()
    value = total_a / (n * (n - 1)) + total_b / (m * (m - 1)) - 2 * cross / (n * m)
    without_a = (total_a - 2 * within_a) / ((n - 1) * (n - 2)) - 2 * (cross - across_a) / ((n - 1) * m)
    without_b = (total_b - 2 * within_b) / ((m - 1) * (m - 2)) - 2 * (cross - across_b) / ((m - 1) * n)
    variance = (n - 1) * without_a.var() + (m - 1) * without_b.var()
    return KernelDistance(float(value), float(np.sqrt(variance)), without_a)


def difference_interval(after: KernelDistance, before: KernelDistance) -> tuple[float, float]:
    """95 % interval of ``after - before``, both of the same latents and reference: each sample left out of both."""
    differences = after.without - before.without
    reach = 1.96 * float(np.sqrt((len(differences) - 1) * differences.var()))
    return after.value - before.value - reach, after.value - before.value + reach


def thinned(features: NDArray[Real], most: int, generator: np.random.Generator) -> NDArray[Real]:
    """A draw of (n, D) features without replacement; all of them where they are no more than `most`."""
    return features if len(features) <= most else features[generator.choice(len(features), most, replace=False)]


def _kernel_sums(a: Array, b: Array) -> tuple[Array, Array]:
    """Row sums (n,) and column sums (m,) of the kernel matrix, a block of rows at a time."""
    rows, columns = np.empty(len(a)), np.zeros(len(b))
    for start in range(0, len(a), _ROWS):
        base = a[start : start + _ROWS] @ b.T / a.shape[1] + 1
        block = base * base * base  # many times faster than a general power
        rows[start : start + _ROWS] = block.sum(axis=1)
        columns += block.sum(axis=0)
    return rows, columns


def _diagonal(a: Array) -> Array:
    return ((a * a).sum(axis=1) / a.shape[1] + 1) ** 3
