"""Whole decodes as studies read them: what a rerun repeats, and what clocks said, one row for each cell."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.load import Runs, ranked
from analysis.published import published
from analysis.quality import UNDECIDED, fid_rises
from analysis.statistics import layer_costs, paired_ratios
from analysis.studies.base import Verdict
from analysis.text import speedup

NAMES = ["flow", "dataset", "checkpoint", "decoder", "series", "tau", "batch_size", "num_tokens", "num_layers"]
"""What a cell is called in every table of a study."""

_QUALITY = ["fid", "kid", "kid_std", "num_samples", "deviation_rmse", "deviation_low", "deviation_high"]
_QUALITY += ["deviation_max", "reconstruction_mse"]
_RISES = ["fid_rise", "fid_rise_low", "fid_rise_high"]


def deterministic(runs: Runs) -> pd.DataFrame:
    """Cost and quality of every cell, the same from run to run; with `analysis.quality.fid_rises`."""
    cells = runs.cells[["cell_id", "group_id", *NAMES]]
    shape = cells[["cell_id", "num_tokens", "num_layers"]]
    costs = layer_costs(runs.tables["layers"].merge(shape, on="cell_id")).drop(columns="modes")
    quality = runs.tables["quality"]
    columns = ["cell_id", "status", "fid_features", "reference_digest", *_QUALITY, *_RISES[1:]]
    quality = quality.loc[quality["status"] == "ok", columns]
    frame = cells.merge(costs, on="cell_id", how="left").merge(quality, on="cell_id", how="left")
    frame = frame.assign(**fid_rises(frame))
    return ranked(frame)[[*NAMES, "fpe", "depth", "iterations", *_QUALITY, *_RISES]]


def layerwise(runs: Runs) -> pd.DataFrame:
    """Iterations and mode of every layer of every cell; the columns of `NAMES` before them."""
    columns = ["layer", "mode", "iterations", "converged", "flags"]
    rows = runs.tables["layers"][["cell_id", *columns]].merge(runs.cells[["cell_id", *NAMES]], on="cell_id")
    return ranked(rows, "layer")[[*NAMES, *columns]]


def speed(runs: Runs) -> pd.DataFrame:
    """Wall times of every timed cell: medians, and the paired speed-up over sequential with its 95 % interval."""
    share = runs.tables["layers"].assign(first=lambda rows: rows["wall_s"].where(rows["layer"] == 1, 0.0))
    share = share.groupby("cell_id")[["first", "wall_s"]].sum()
    share = (share["first"] / share["wall_s"]).rename("first_layer_share").reset_index()
    timed = runs.speedups[["cell_id", "wall_s", "speedup", "low", "high", "coverage", "forward_ratio", "rounds"]]
    frame = runs.cells[["cell_id", *NAMES]].merge(timed, on="cell_id").merge(share, on="cell_id", how="left")
    return ranked(frame).drop(columns="cell_id")


def rounds(runs: Runs) -> pd.DataFrame:
    """Every timed round that ended well, with the ratio of sequential's wall time to its own: what `speed` rests on."""
    timings = runs.tables["timings"]
    paired = paired_ratios(timings[timings["status"] == "ok"])
    columns = ["cell_id", "round", "wall_s", "ratio", "forward_ratio"]
    return ranked(runs.cells[["cell_id", *NAMES]].merge(paired[columns], on="cell_id"), "round").drop(columns="cell_id")


def largest_batch(frame: pd.DataFrame, by: str = "flow") -> pd.DataFrame:
    """Of each flow the rows of its largest batch."""
    return frame[frame["batch_size"] == frame.groupby(by)["batch_size"].transform("max")]


def reaches(row: dict, factor: float) -> Verdict:
    """Whether a speed-up is at least so large with all of its interval; None where too few rounds support one.

    >>> reaches({"low": 2.0, "high": 3.0}, 1.5), reaches({"low": 1.0, "high": 3.0}, 1.5), reaches({"low": None}, 1.5)
    (True, 'undecided', None)
    """
    if pd.isna(row["low"]):
        return None
    return True if row["low"] >= factor else False if row["high"] < factor else UNDECIDED


def half_of_published(decoder: str, keys: Sequence[str]) -> float:
    """Half of the least speed-up that the paper reports of a decoder in some experiments: what bears it out here."""
    rows = published().query("quantity == 'speedup' and decoder == @decoder and key in @keys")
    return float(rows["value"].min() / 2)


def with_interval(row: dict) -> str:
    """A speed-up with its interval."""
    return speedup(row["speedup"], row["low"], row["high"], row["coverage"])
