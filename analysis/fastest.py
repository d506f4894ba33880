"""Which decoder is fastest at which deviation, from a run of the matrix `fastest`: ``results/fastest.md``.

Every bar is checked by the paired rounds of one run, and every number comes from its tables.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.load import PAPER_TAU, Runs, load
from analysis.statistics import Median, median_interval, paired_speedups, ratios_to
from analysis.studies.cells import deterministic, speed
from analysis.studies.render import machine
from analysis.studies.stored import origin, provenance
from analysis.text import listing, markdown, percent, quantity
from harness.errors import HarnessError

OVER_PAPER = {1: 4.0, 16: 3.0, 64: 2.5}
"""By batch size, how many times faster than SeJD at tau 0.5 `auto` is to be, at no larger deviation."""
PARALLEL = 16
"""The batch size from which on time is asked for in forward passes: before, a call's own cost is most of it."""
FORWARD_RATIO = 1.35
"""Forward passes that `auto` may cost at most."""
SLACK = 1.05
"""How much slower than any other decoder of no larger deviation than SeJD's `auto` may be."""
SMALL_BUDGET, SMALL_FORWARD = 0.01, {64: 2.2, 256: 3.0}
"""The strict budget, and the forward passes that `auto` may cost within it, by the number of tokens."""
CELL = ["flow", "batch_size"]
OVER_SEJD = ["over_sejd", "over_sejd_low", "over_sejd_high", "over_sejd_coverage"]
AUTO, STRICT = "auto", f"auto, budget {SMALL_BUDGET:g}"


def write(folders: Sequence[Path | str], path: Path) -> Path:
    """Render the text from run folders of the matrix, and the table behind it as CSV beside."""
    runs = load(folders)
    frame = table(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(runs, frame), encoding="utf-8")
    frame.drop(columns="cell_id").to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
    return path


def table(runs: Runs) -> pd.DataFrame:
    """One row per cell: cost, quality, wall time, and the paired ratio to SeJD at tau 0.5 in `over_sejd`."""
    timings = runs.tables["timings"]
    paper = (timings["label"] == "sejd") & (timings["tau"] == PAPER_TAU)
    others = timings["decoder"].where(timings["decoder"] != "sejd", "another sejd")
    paired = paired_speedups(timings.assign(decoder=others.mask(paper, "sejd")), baseline="sejd").set_index("cell_id")
    names = [*CELL, "series", "tau"]
    quality = deterministic(runs)
    numbers = ["wall_s", "speedup", "low", "high", "coverage", "forward_ratio", "first_layer_share", "rounds"]
    timed = speed(runs)[[*names, *numbers]]
    frame = quality.merge(timed, on=names, how="left")
    over = runs.cells[["cell_id", *names]]
    for figure, name in zip(("speedup", "low", "high", "coverage"), OVER_SEJD, strict=True):
        over = over.assign(**{name: over["cell_id"].map(paired[figure])})
    over = over.merge(runs.validity[["cell_id", "valid"]], on="cell_id", how="left")
    return frame.merge(over, on=names, how="left").sort_values(names, kind="stable")


def bars(frame: pd.DataFrame, timings: pd.DataFrame) -> pd.DataFrame:
    """One row per flow, batch size and bar: what was asked of `auto`, what it reached, whether that is enough, None
    where it was not measured, and else by what share of what was asked it is not.
    """
    rows = []
    for _, cells in frame.groupby(CELL, sort=False):
        flow, batch = str(cells["flow"].iloc[0]), int(cells["batch_size"].iloc[0])
        sejd, auto, strict = _one(cells, "sejd", PAPER_TAU), _one(cells, AUTO), _one(cells, STRICT)
        if sejd is None or auto is None or pd.isna(auto["deviation_rmse"]) or pd.isna(sejd["deviation_rmse"]):
            continue  # speed without quality meets no bar
        rivals = cells[(cells["deviation_rmse"] <= sejd["deviation_rmse"]) & ~cells["series"].isin([AUTO, STRICT])]
        fastest = rivals.sort_values("wall_s").iloc[0]
        least = [
            ("over SeJD", auto["over_sejd"], OVER_PAPER.get(batch)),
            ("over the fastest other", _paired(timings, fastest, auto).value, 1 / SLACK),
            ("over sequential", auto["speedup"], 1.0),
        ]
        most = [
            ("deviation over SeJD's", auto["deviation_rmse"] / sejd["deviation_rmse"], 1.0),
            ("forward passes", auto["forward_ratio"], FORWARD_RATIO if batch >= PARALLEL else None),
        ]
        if strict is not None:
            passes = SMALL_FORWARD.get(cells["num_tokens"].iloc[0]) if batch >= PARALLEL else None
            most += [
                (f"deviation, budget {SMALL_BUDGET:g}", strict["deviation_rmse"], SMALL_BUDGET),
                (f"forward passes, budget {SMALL_BUDGET:g}", strict["forward_ratio"], passes),
            ]
        for bar, reached, asked, sign in [*((*one, -1) for one in least), *((*one, 1) for one in most)]:
            if asked is not None:
                short = sign * (reached / asked - 1)
                met = None if pd.isna(short) else bool(short <= 0)
                row = {"flow": flow, "batch_size": batch, "bar": bar, "asked": asked, "reached": reached, "met": met}
                rows.append(row | {"missed_by": short if met is False else np.nan})
    return pd.DataFrame(rows)


def where(runs: Runs) -> pd.DataFrame:
    """Where the time of SeJD and `auto` goes, layer by layer: network calls, and forward passes that these cost."""
    layers = runs.joined("layers").sort_values("layer")
    paper = layers["series"].eq("sejd") & layers["tau"].eq(PAPER_TAU)
    layers = layers[paper | layers["series"].isin([AUTO, STRICT])]
    share = layers["wall_s"] / layers.groupby("cell_id")["wall_s"].transform("sum")
    passes = share * layers["cell_id"].map(runs.speedups.set_index("cell_id")["forward_ratio"])
    told = layers.assign(calls=layers["mode"] + " " + layers["iterations"].astype(str), passes=passes.map(quantity))
    return told.groupby([*CELL, "series"])[["calls", "passes"]].agg(", ".join).reset_index()


def render(runs: Runs, frame: pd.DataFrame) -> str:
    """The text."""
    reached = bars(frame, runs.tables["timings"])
    if reached.empty:
        raise HarnessError(
            f"these runs hold no `{AUTO}` beside sejd at tau {PAPER_TAU:g} whose deviations were both measured, so "
            "there is nothing to tell; `harness run fastest` measures them"
        )
    parts = [
        "# The fastest decoder at SeJD's deviation\n",
        f"Runs of the matrix `fastest` on {machine(runs)}. {origin(provenance(runs.runs))} Ratios are medians over "
        "paired rounds. Written by `make figures`; no number is typed in.\n",
        "## What was asked of `auto`, and what it reached\n",
        f"Of `auto` at the deviation of SeJD at tau {PAPER_TAU:g}: to be {_listed(OVER_PAPER)} times as fast as SeJD "
        f"at batches of {_listed(OVER_PAPER, keys=True)}, to cost at most {FORWARD_RATIO:g} forward passes from a "
        f"batch of {PARALLEL} on, and never to be slower than sequential or, by more than {SLACK - 1:.0%}, than any "
        f"other decoder of no larger deviation than SeJD's. With a budget of {SMALL_BUDGET:g}: at most "
        f"{_listed(SMALL_FORWARD)} forward passes where a sequence has {_listed(SMALL_FORWARD, keys=True)} tokens. "
        f"{int(reached['met'].eq(True).sum())} of {len(reached)} are met.\n",
        _told(_wide(reached)),
        "\n## Where the time goes\n",
        "Layer by layer, layer 1 first: network calls, and the forward passes that they cost.\n",
        _told(where(runs)),
        *_without_verdict(frame, reached),
        "\n## Every cell\n",
        _told(frame[CELLS]),
        "\nFPE: token evaluations over those of one forward pass. Deviation: RMSE to the exact sample of the same "
        "latents. FID: by each dataset's own small feature network, comparable within one flow and batch size only.",
    ]
    return "\n".join(parts) + "\n"


def _told(frame: pd.DataFrame) -> str:
    return markdown(frame, {name: HEADINGS.get(name, name.replace("_", " ")) for name in map(str, frame)})


def _listed(by: Mapping[int, float], keys: bool = False) -> str:
    return listing([f"{one:g}" for one in (by if keys else by.values())])


def _wide(reached: pd.DataFrame) -> pd.DataFrame:
    """A row per flow and batch size, a column per bar: what was reached, and by how much that is too little."""
    words = reached["met"].map({True: "", False: " (missed by {})"}).fillna("not measured")
    told = [
        ("" if pd.isna(number) else quantity(number)) + text.format("" if pd.isna(short) else percent(short))
        for number, text, short in zip(reached["reached"], words, reached["missed_by"], strict=True)
    ]
    wide = reached.assign(told=told).pivot(index=CELL, columns="bar", values="told")
    return wide[list(dict.fromkeys(reached["bar"]))].fillna("").reset_index()


def _without_verdict(frame: pd.DataFrame, reached: pd.DataFrame) -> list[str]:
    judged = {(row["flow"], row["batch_size"]) for row in reached.to_dict("records")}
    left = [group for group in frame[CELL].drop_duplicates().itertuples(index=False, name=None) if group not in judged]
    names = ", ".join(f"{flow} at batch {batch}" for flow, batch in left)
    return [f"\nTimed, but without a deviation and so without a verdict: {names}."] if left else []


HEADINGS = {
    "batch_size": "batch",
    "series": "decoder",
    "calls": "network calls",
    "passes": "forward passes",
    "wall_s": "time (s)",
    "speedup": "over sequential",
    "over_sejd": "over SeJD",
    "forward_ratio": "forward passes",
    "deviation_rmse": "deviation",
    "fid": "FID",
    "valid": "quality",
    "fpe": "FPE",
    "iterations": "iterations per layer",
}
"""Columns whose headings in the text are not their names."""
CELLS = [*CELL, "series", "tau", "wall_s", "speedup", "over_sejd", "forward_ratio", "deviation_rmse", "fid"]
CELLS += ["valid", "fpe", "depth", "iterations"]


def _one(cells: pd.DataFrame, series: str, tau: float | None = None) -> pd.Series | None:
    rows = cells[cells["series"] == series]
    rows = rows if tau is None else rows[rows["tau"] == tau]
    return None if rows.empty else rows.iloc[0]


def _paired(timings: pd.DataFrame, slow: pd.Series, fast: pd.Series) -> Median:
    good = timings[timings["status"] == "ok"]
    rounds = (good[good["cell_id"] == row["cell_id"]] for row in (fast, slow))
    return median_interval(ratios_to(*rounds)["ratio"])


if __name__ == "__main__":
    *folders, path = sys.argv[1:]
    print(write(folders, Path(path)))
