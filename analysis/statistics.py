"""Paired speed-ups and the intervals around medians: the one place where rounds become a figure.

Within one session and round every cell of a group decodes the same latents, so the ratio of two wall times of one
round is free of whatever slowed the machine then. A speed-up is the median of those ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.runs import tables

BASELINE = "sequential"
"""The decoder that every other is compared with."""

MIN_ROUNDS = 5
"""Fewer rounds get no interval: even their whole range would cover the median in under 90 % of experiments."""

CONFIDENCE = 0.95
"""What an interval is to cover; where the rounds are too few for it, the text says what it does cover."""

STATES = ("not converged", "done", "converged")
"""How a decode ends, the least certain first; see `harness.decoders.trace.LayerTrace`."""

DESCRIPTION = ["cell_key", "group_id", *tables.DESCRIPTION]
"""The columns of `timings` that describe a cell and are handed through."""


class Median(NamedTuple):
    """A median and its interval, NaN where too few values support one, and how often such an interval covers."""

    value: float
    low: float
    high: float
    coverage: float


def median_interval(values: np.ndarray | pd.Series, confidence: float = CONFIDENCE) -> Median:
    """The median of some rounds with the narrowest interval between two of them that covers it as often as asked.

    The r-th smallest to the r-th largest of n independent values hold the median of their distribution, whatever that
    is, but for twice the probability that a fair coin shows fewer than r heads in n throws (Hollander & Wolfe,
    Nonparametric Statistical Methods, Sec. 3.6); `coverage` is that of the interval, which more often than not is more
    than `confidence`. It is less only where the whole range is: of 5 values 93.75 %. NaNs and the order make no
    difference. NaN throughout for no values; a NaN interval for fewer than `MIN_ROUNDS`.

    >>> median_interval(np.array([5.0, 1.0, 2.0, 3.0, 4.0]))
    Median(value=3.0, low=1.0, high=5.0, coverage=0.9375)
    >>> median_interval(np.array([3.0]))
    Median(value=3.0, low=nan, high=nan, coverage=nan)
    """
    from scipy.stats import binom

    finite = np.sort(np.asarray(values, dtype=float))
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return Median(np.nan, np.nan, np.nan, np.nan)
    value, coin = float(np.median(finite)), binom(len(finite), 0.5)
    if len(finite) < MIN_ROUNDS:
        return Median(value, np.nan, np.nan, np.nan)
    rank = max(int(coin.ppf((1 - confidence) / 2)), 1)
    return Median(value, float(finite[rank - 1]), float(finite[-rank]), 1 - 2 * float(coin.cdf(rank - 1)))


def paired_speedups(timings: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Speed-up of every cell over the baseline of its group, and its time in forward passes; rows with "ok" count.

    Where a group has several cells of the baseline, the one labelled like it is taken, else the first by label. One row
    per cell, by group and label; `pairs` are rounds that the baseline ended well too, in the same session. What rests
    on no round is NaN, and so is an interval that rests on fewer than `MIN_ROUNDS`; see `median_interval`.
    """
    timings = timings.drop_duplicates(["cell_id", "session", "round"])
    paired = paired_ratios(timings[timings["status"] == "ok"], baseline)
    rounds_of = dict(iter(paired.groupby("cell_id")))
    described = ["cell_id", *DESCRIPTION]
    rows = []
    for cell in timings.drop_duplicates("cell_id").sort_values(["group_id", "label", "cell_id"]).to_dict("records"):
        rounds = rounds_of.get(cell["cell_id"], paired.iloc[:0])
        rows.append(
            [
                *(cell[name] for name in described),
                *rounds[["wall_s", "images_per_s"]].median(),
                len(rounds),
                *median_interval(rounds["ratio"]),
                int(rounds["ratio"].notna().sum()),
                *median_interval(rounds["forward_ratio"])[:-1],
            ]
        )
    figures = ["wall_s", "images_per_s", "rounds", "speedup", "low", "high", "coverage", "pairs"]
    figures += ["forward_ratio", "forward_ratio_low", "forward_ratio_high"]
    return pd.DataFrame(rows, columns=[*described, *figures])


def paired_ratios(good: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Rounds that ended well, with `ratio`: the wall time of `paired_speedups`' baseline over the row's own."""
    candidates = good[good["decoder"] == baseline]
    candidates = candidates.assign(_other=candidates["label"] != baseline).sort_values(["_other", "label", "cell_id"])
    chosen = candidates.drop_duplicates("group_id")["cell_id"]
    return ratios_to(good, candidates[candidates["cell_id"].isin(chosen)])


def ratios_to(rounds: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Rounds with `ratio`: the one reference's wall time in the same group, session and round over the row's own."""
    pair = ["group_id", "session", "round"]
    merged = rounds.merge(reference[[*pair, "wall_s"]].rename(columns={"wall_s": "reference_s"}), on=pair, how="left")
    return merged.assign(ratio=merged["reference_s"] / merged["wall_s"])


class Shift(NamedTuple):
    """By what factor one set of rounds is above another, with its interval and the probability under no difference."""

    factor: float
    low: float
    high: float
    p_value: float


def shift_of_rounds(new: np.ndarray | pd.Series, base: np.ndarray | pd.Series, confidence: float = 0.99) -> Shift:
    """The factor between two independent sets of positive rounds, by ranks.

    The Hodges-Lehmann estimate, the median of ``log(new[i]) - log(base[j])`` over all pairs, with the interval that
    inverts the Mann-Whitney test (Hollander & Wolfe, Nonparametric Statistical Methods, Sec. 4.3). No distribution is
    assumed, outliers count by rank only, and nothing is resampled: the same rounds give the same answer.

    What is not a positive number is left out. NaN throughout where either set, (n,) and (m,), is empty; a NaN interval
    where the rounds are too few for the confidence.

    >>> rounds = np.array([1.0, 1.1, 0.9, 1.0, 1.05])
    >>> shift_of_rounds(rounds, rounds).factor, round(shift_of_rounds(2 * rounds, rounds).factor, 6)
    (1.0, 2.0)
    """
    from scipy.stats import mannwhitneyu, norm

    arrays = (np.asarray(new, dtype=float), np.asarray(base, dtype=float))
    after, before = (np.log(values[np.isfinite(values) & (values > 0)]) for values in arrays)
    n, m = len(after), len(before)
    if not n or not m:
        return Shift(np.nan, np.nan, np.nan, np.nan)
    pairs = np.sort((after[:, None] - before[None, :]).ravel())
    p_value = float(mannwhitneyu(after, before, alternative="two-sided").pvalue)
    spread = np.sqrt(n * m * (n + m + 1) / 12)
    outside = int(np.floor(n * m / 2 - norm.ppf(0.5 + confidence / 2) * spread))  # pairs beyond either end
    low, high = (pairs[outside], pairs[-1 - outside]) if outside >= 0 else (np.nan, np.nan)
    return Shift(float(np.exp(np.median(pairs))), float(np.exp(low)), float(np.exp(high)), p_value)


def relative_times(runs: Sequence[pd.DataFrame]) -> list[np.ndarray]:
    """For each run the times of a cell's rounds, (rounds,), over what no decoder changes in the same rounds.

    That is sequential's time and a forward pass's, in a geometric mean. Either alone may be the noisier one, so its
    weight is that with which the rounds of each run scatter least about their median (least squares in logarithms, one
    weight for all runs); with fewer than `MIN_ROUNDS` in one of them, sequential's time alone.

    Args:
        runs: rows of `paired_ratios` of one cell each: wall_s, reference_s and encode_s.
    """
    logs = [np.log(rows[["wall_s", "reference_s", "encode_s"]].to_numpy(dtype=float)) for rows in runs]
    logs = [rows[np.isfinite(rows[:, :2]).all(axis=1)] for rows in logs]
    weight = 1.0
    if all(len(rows) >= MIN_ROUNDS and np.isfinite(rows).all() for rows in logs):
        about = np.concatenate([rows - np.median(rows, axis=0) for rows in logs])
        own, between = about[:, 0] - about[:, 2], about[:, 1] - about[:, 2]
        weight = float(np.clip(own @ between / max(between @ between, 1e-30), 0.0, 1.0))
    forward = [np.where(np.isfinite(rows[:, 2]), rows[:, 2], 0.0) for rows in logs]
    return [
        np.exp(rows[:, 0] - weight * rows[:, 1] - (1 - weight) * encode)
        for rows, encode in zip(logs, forward, strict=True)
    ]


def detectable(shift: Shift, tolerance: float, confidence: float, power: float = 0.95) -> float:
    """The least growth, as a share, that a comparison with an interval as wide as this one's finds so often.

    It is found where the estimate is beyond the tolerance and the interval, of such a confidence, does not hold 1;
    the estimate is taken as normal, its spread from the interval. NaN where there is none.

    >>> round(detectable(Shift(1.0, 0.96, 1 / 0.96, 1.0), tolerance=0.05, confidence=0.96), 3)
    0.085
    """
    from scipy.stats import norm

    half = (np.log(shift.high) - np.log(shift.low)) / 2
    spread = half / norm.ppf(0.5 + confidence / 2)
    return float(np.expm1(max(np.log1p(tolerance), half) + norm.ppf(power) * spread))


def layer_costs(layers: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of `layers`, which `num_tokens` and `num_layers` join: fpe, depth, iterations and modes.

    FPE are forward-pass equivalents. An iteration count is followed by "!" where the layer did not converge; `state` is
    the least certain of the layers' own, null where the run did not store them.
    """
    rows = [
        [
            cell,
            # The last token parametrises nothing: a forward pass evaluates L - 1 tokens a layer.
            rows["token_evaluations"].sum() / (rows["num_layers"].iloc[0] * max(rows["num_tokens"].iloc[0] - 1, 1)),
            rows["depth"].sum(),
            " ".join(f"{row.iterations:g}{'' if row.converged else '!'}" for row in rows.itertuples(index=False)),
            " ".join(rows["mode"]),
            next((state for state in STATES if rows["state"].eq(state).any()), None) if "state" in rows else None,
        ]
        for cell, rows in layers.sort_values("layer").groupby("cell_id")
    ]
    return pd.DataFrame(rows, columns=["cell_id", "fpe", "depth", "iterations", "modes", "state"])
