"""Whether a decode keeps its quality: validity by the matrix's tolerance, and the paper's break conditions.

By the paper (arXiv 2505.24791) Jacobi iteration is of use only while a layer settles in fewer than L iterations, where
it is exact anyway; while FID stays within 5 % of sequential's; and while residuals fall. What breaks one of these is a
warning, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.statistics import BASELINE
from harness.runs.titles import title

MAX_FID_INCREASE = 0.05
"""Relative to sequential's."""

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


def valid_cells(quality: pd.DataFrame, tolerance: Mapping[str, float], baseline: str = BASELINE) -> pd.Series:
    """Which cells may headline their speed, in the order of `quality`, whose rows have `group_id` and `decoder` too.

    `tolerance` may state `max_deviation`, RMSE in image units, and `max_fid_increase`, relative to `exact_fid`. None
    where nothing was stated or measured.
    """
    verdicts: list[bool | None] = []
    for row, exact in zip(quality.to_dict("records"), exact_fid(quality, baseline), strict=True):
        checks = []
        if "max_deviation" in tolerance and pd.notna(row["deviation_rmse"]):
            checks.append(row["deviation_rmse"] <= tolerance["max_deviation"])
        if "max_fid_increase" in tolerance and pd.notna(row["fid"]) and pd.notna(exact):
            checks.append(row["fid"] <= exact * (1 + tolerance["max_fid_increase"]))
        broken = row["status"] != "ok" or bool(row["nonfinite_samples"] and row["nonfinite_samples"] > 0)
        verdicts.append(False if broken else bool(all(checks)) if checks else None)
    return pd.Series(verdicts, index=quality.index, dtype=object)


def break_conditions(
    cells: pd.DataFrame, layers: pd.DataFrame, quality: pd.DataFrame, baseline: str = BASELINE
) -> pd.DataFrame:
    """What broke: cell_id, condition, layer (null for ``"fid"``), value and limit, a row for each layer to blame.

    Value and limit are iterations and L, or FID and the highest allowed; both are null for ``"residuals"``.
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
    "fid": f"FID is more than {MAX_FID_INCREASE:.0%} above sequential's",
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
    risen = measured["status"].eq("ok") & measured["fid"].gt(limit)
    return measured.assign(condition="fid", value=measured["fid"], limit=limit)[risen]


def _blame(condition: str, rows: pd.DataFrame) -> str:
    if condition == "fid":
        row = rows.iloc[0]
        return f"{row['value']:.2f}, allowed {row['limit']:.2f}"
    numbers = [str(layer) for layer in rows["layer"]]
    where = f"layer{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
    return where if condition == "residuals" else f"{where}: {rows['value'].max():g} of {rows['limit'].iloc[0]:g}"
