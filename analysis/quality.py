"""Whether a decode keeps its quality: validity by the matrix's tolerance, and the paper's break conditions.

By the paper (arXiv 2505.24791) Jacobi iteration is of use only while a layer settles in fewer than L iterations, where
it is exact anyway; while FID stays within 5 % of sequential's; and while residuals fall. What breaks one of these is a
warning, never an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from analysis.statistics import BASELINE
from harness.runs.titles import title

MAX_FID_INCREASE = 0.05
"""Relative to sequential's."""

MIN_SAMPLES = 256
"""Behind each FID that is judged: with fewer its bias, which decoders share, hides what they differ in."""

VALID, INVALID = "valid", "invalid"
UNDECIDED: Final = "undecided"

CONDITIONS = ("iterations", "fid", "residuals")


def exact_fid(quality: pd.DataFrame, baseline: str = BASELINE) -> pd.Series:
    """The baseline's FID that each row's own may be compared with; NaN where there is none.

    It is of the same group, by the same features, to the same real images, where their digest was stored, and from as
    many samples: FID is biased by their number.
    """
    alike = ["group_id", "fid_features", "num_samples", "reference_digest"]
    exact = quality[quality["decoder"].eq(baseline) & quality["status"].eq("ok")].dropna(subset=["fid", *alike[:-1]])
    found = quality[alike].merge(exact.drop_duplicates(alike)[[*alike, "fid"]], on=alike, how="left")
    return found["fid"].set_axis(quality.index)


def fid_rises(quality: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """FID over `exact_fid`, less 1, in the order of `quality`: columns fid_rise, fid_rise_low and fid_rise_high.

    The interval, of 95 %, is of the samples of the same latents. It is NaN where none was estimated or fewer than
    `MIN_SAMPLES` are behind it; the baseline's own is 0.
    """
    own, enough = quality["decoder"].eq(baseline), quality["num_samples"].ge(MIN_SAMPLES)
    found = pd.DataFrame({"fid_rise": quality["fid"] / exact_fid(quality, baseline) - 1}, index=quality.index)
    for name in ("fid_rise_low", "fid_rise_high"):
        ends = quality[name] if name in quality else found["fid_rise"] * np.nan
        found[name] = ends.astype(float).where(enough).mask(own, 0.0).where(found["fid_rise"].notna())
    return found


def within(low: float, high: float, limit: float) -> bool | None:
    """Whether what lies in an interval keeps a limit: all of it does, or none; None where neither, or none is known.

    >>> within(0.01, 0.04, 0.05), within(0.06, 0.2, 0.05), within(0.01, 0.09, 0.05), within(float("nan"), 1.0, 0.05)
    (True, False, None, None)
    """
    return None if pd.isna(low) or low <= limit < high else bool(high <= limit)


def valid_cells(quality: pd.DataFrame, tolerance: Mapping[str, float], baseline: str = BASELINE) -> pd.DataFrame:
    """Which cells may headline their speed, in the order of `quality`, whose rows have `group_id` and `decoder` too.

    `tolerance` may state `max_deviation`, RMSE in image units, and `max_fid_increase`, relative to `exact_fid`. Columns
    `valid`: `VALID` where the 95 % interval of each keeps its limit, `INVALID` where one of them lies beyond it or the
    samples are none, else `UNDECIDED`; None where nothing was stated or measured. And `why`, where it is not valid.
    """
    verdicts: list[tuple[str | None, str | None]] = []
    for row in quality.assign(**fid_rises(quality, baseline)).to_dict("records"):
        checks = list(_checks(row, tolerance, row["decoder"] == baseline))
        if row["status"] != "ok" or bool(row["nonfinite_samples"] and row["nonfinite_samples"] > 0):
            checks = [(False, "its samples are not finite" if row["status"] == "ok" else f"status {row['status']}")]
        kept = [verdict for verdict, _ in checks]
        verdict = INVALID if False in kept else UNDECIDED if None in kept else VALID
        blamed = [words for one, words in checks if one is (False if verdict == INVALID else None)]
        verdicts.append((verdict if checks else None, "; ".join(blamed) or None))
    return pd.DataFrame(verdicts, index=quality.index, columns=["valid", "why"], dtype=object)


def _checks(row: Mapping[Any, Any], tolerance: Mapping[str, float], own: bool) -> Iterator[tuple[bool | None, str]]:
    if "max_deviation" in tolerance and pd.notna(value := row["deviation_rmse"]):
        low, high = (value, value) if own else (row.get(f"deviation_{end}", np.nan) for end in ("low", "high"))
        told = "no interval" if pd.isna(low) else f"{low:.3g} to {high:.3g}"
        limit = tolerance["max_deviation"]
        yield within(low, high, limit), f"deviation {value:.3g} ({told}), allowed {limit:g}"
    if "max_fid_increase" in tolerance and pd.notna(rise := row["fid_rise"]):
        low, high = row["fid_rise_low"], row["fid_rise_high"]
        few = f"{row['num_samples']:,.0f} samples are too few" if row["num_samples"] < MIN_SAMPLES else "no interval"
        told = few if pd.isna(low) else f"{low:+.1%} to {high:+.1%}"
        limit = tolerance["max_fid_increase"]
        yield within(low, high, limit), f"FID {rise:+.1%} ({told}), allowed {limit:+.0%}"


def break_conditions(
    cells: pd.DataFrame, layers: pd.DataFrame, quality: pd.DataFrame, baseline: str = BASELINE
) -> pd.DataFrame:
    """What broke: cell_id, condition, layer (null for ``"fid"``), value and limit, a row for each layer to blame.

    Value and limit are iterations and L, or FID and the highest allowed; both are null for ``"residuals"``. A FID has
    risen where all of its interval says so, see `fid_rises`.
    """
    solved = layers.merge(cells[["cell_id", "num_tokens"]], on="cell_id")
    growing = solved[solved["flags"].fillna("").str.contains("growing")].assign(condition="residuals")
    broken = [_iterations(solved), _fid(cells, quality, baseline), growing]
    columns: dict[str, Any] = {"cell_id": object, "condition": object, "layer": "Int64", "value": float, "limit": float}
    return pd.concat([rows.reindex(columns=list(columns)).astype(columns) for rows in broken], ignore_index=True)


def warnings(found: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """One sentence for each condition, naming every cell that broke it, by rows of `break_conditions` and `cells`."""
    names = {row["cell_id"]: title(row["label"], row["tau"]) for row in cells.to_dict("records")}
    words = []
    for condition in CONDITIONS:
        rows = found[found["condition"] == condition]
        blamed = [f"{names[cell]} ({_blame(condition, one)})" for cell, one in rows.groupby("cell_id", sort=False)]
        if blamed:
            words.append(f"{_SENTENCES[condition]}: {', '.join(dict.fromkeys(blamed))}.")
    return words


_SENTENCES = {
    "iterations": "A layer took more iterations than it has tokens",
    "fid": f"FID is more than {MAX_FID_INCREASE:.0%} above sequential's, with 95 % confidence",
    "residuals": "A residual grew from one iteration to the next",
}


def _iterations(solved: pd.DataFrame) -> pd.DataFrame:
    again = solved[solved["flags"].fillna("").str.contains("redecoded")]  # given up, and decoded sequentially instead
    again = again.assign(iterations=again["depth"] - again["iterations"], converged=False)
    tried = pd.concat([solved[solved["mode"] != "sequential"], again], ignore_index=True)
    tried = tried.assign(condition="iterations", value=tried["iterations"], limit=tried["num_tokens"])
    within = tried["value"].lt(tried["limit"]) | (tried["value"].eq(tried["limit"]) & tried["converged"].eq(True))
    return tried[~within]


def _fid(cells: pd.DataFrame, quality: pd.DataFrame, baseline: str) -> pd.DataFrame:
    measured = quality.merge(cells[["cell_id", "group_id", "decoder"]], on="cell_id")
    limit = exact_fid(measured, baseline) * (1 + MAX_FID_INCREASE)
    risen = measured["status"].eq("ok") & fid_rises(measured, baseline)["fid_rise_low"].gt(MAX_FID_INCREASE)
    return measured.assign(condition="fid", value=measured["fid"], limit=limit)[risen]


def _blame(condition: str, rows: pd.DataFrame) -> str:
    if condition == "fid":
        row = rows.iloc[0]
        return f"{row['value']:.2f}, allowed {row['limit']:.2f}"
    numbers = [str(layer) for layer in rows["layer"]]
    where = f"layer{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
    return where if condition == "residuals" else f"{where}: {rows['value'].max():g} of {rows['limit'].iloc[0]:g}"
