"""Which decoder is fastest at which deviation, from a run of the matrix `fastest`: ``results/fastest.md``.

Every bar is checked by the paired rounds of one run, and every number comes from its tables.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.load import BASELINE, PAPER_TAU, Runs, load
from analysis.statistics import Median, median_interval, paired_speedups, ratios_to
from analysis.studies.cells import deterministic, layerwise, speed
from analysis.studies.render import machine
from analysis.text import markdown, speedup
from harness.errors import HarnessError
from harness.runs.titles import title

SPEEDUP = {1: 3.0, 16: 3.0, 64: 2.5}
"""By batch size, how many times faster than SeJD at tau 0.5 `auto` is to be."""
FORWARD_RATIO = 1.5
"""What `auto` may cost at most, in forward passes, at `PARALLEL` batch sizes."""
PARALLEL = (16, 64)
SLACK = 1.05
"""How much slower than any other decoder of no larger deviation `auto` may be."""
SMALL_BUDGET, SMALL_SPEEDUP = 0.01, 1.5
"""The strict budget, and how many times faster than the best of `CLASSIC` within it `auto` is to be there."""
CLASSIC = (BASELINE, "ujd", "sejd")
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
    return frame.merge(over, on=names, how="left").sort_values(names, kind="stable")


def bars(frame: pd.DataFrame, timings: pd.DataFrame) -> pd.DataFrame:
    """One row per flow and batch size of `table`: what `auto` reached, and whether that is what was asked for."""
    rows = []
    for _, cells in frame.groupby(CELL, sort=False):
        flow, batch = str(cells["flow"].iloc[0]), int(cells["batch_size"].iloc[0])
        sejd = _one(cells, "sejd", PAPER_TAU)
        auto, strict = _one(cells, AUTO), _one(cells, STRICT)
        if sejd is None or auto is None or pd.isna(auto["deviation_rmse"]) or pd.isna(sejd["deviation_rmse"]):
            continue  # speed without quality meets no bar
        rivals = cells[(cells["deviation_rmse"] <= sejd["deviation_rmse"]) & ~cells["series"].isin([AUTO, STRICT])]
        fastest = rivals.sort_values("wall_s").iloc[0]
        over_fastest = _paired(timings, fastest, auto)
        exact = _one(cells, BASELINE)
        fid_exact = np.nan if exact is None else exact["fid"]
        row = {
            "flow": flow,
            "batch_size": batch,
            "over_sejd": speedup(*auto[OVER_SEJD]),
            "asked": SPEEDUP.get(batch, np.nan),
            "reached": auto["over_sejd"] >= SPEEDUP.get(batch, 0.0),
            "deviation": auto["deviation_rmse"],
            "deviation_sejd": sejd["deviation_rmse"],
            "no_larger": auto["deviation_rmse"] <= sejd["deviation_rmse"],
            "fid": auto["fid"],
            "fid_sejd": sejd["fid"],
            "fid_exact": fid_exact,
            "fid_no_larger": _no_larger(auto["fid"], [sejd["fid"], fid_exact]),
            "forward_ratio": auto["forward_ratio"],
            "within_forward": batch not in PARALLEL or auto["forward_ratio"] <= FORWARD_RATIO,
            "fastest_other": title(fastest["series"], fastest["tau"]),
            "over_other": speedup(*over_fastest),
            "not_slower": over_fastest.value * SLACK >= 1,
        }
        if strict is not None:
            classic = cells[cells["series"].isin(CLASSIC) & (cells["deviation_rmse"] <= SMALL_BUDGET)]
            row |= {"strict_deviation": strict["deviation_rmse"]}
            if len(classic):
                best = classic.sort_values("wall_s").iloc[0]
                over_best = _paired(timings, best, strict)
                fast = over_best.value >= SMALL_SPEEDUP
                row |= {
                    "best_classic": title(best["series"], best["tau"]),
                    "over_classic": speedup(*over_best),
                    "strict_reached": fast and strict["deviation_rmse"] <= SMALL_BUDGET,
                }
        rows.append(row)
    return pd.DataFrame(rows)


def shares(frame: pd.DataFrame) -> pd.DataFrame:
    """Layer 1's share of a decode's time, sequential, by SeJD at tau 0.5 and by `auto`."""
    chosen = {BASELINE: None, "sejd": PAPER_TAU, AUTO: None}
    rows = []
    for (flow, batch), cells in frame.groupby(CELL, sort=False):
        found = {name: _one(cells, name, tau) for name, tau in chosen.items()}
        shown = {name: np.nan if row is None else row["first_layer_share"] for name, row in found.items()}
        rows.append({"flow": flow, "batch_size": batch} | shown)
    return pd.DataFrame(rows)


def render(runs: Runs, frame: pd.DataFrame) -> str:
    """The text."""
    reached = bars(frame, runs.tables["timings"])
    if reached.empty:
        raise HarnessError(
            f"these runs hold no `{AUTO}` beside sejd at tau {PAPER_TAU:g} whose deviations were both measured, so "
            "there is nothing to tell; `harness run fastest` measures them"
        )
    met = {
        name: f"{int(reached[name].eq(True).sum())} of {len(reached)}"
        for name in ("reached", "no_larger", "fid_no_larger", "within_forward", "not_slower", "strict_reached")
        if name in reached
    }
    layers = layerwise(runs)
    schedules = layers[layers["series"].isin([AUTO, STRICT])]
    schedules = schedules.assign(how=schedules["mode"] + " " + schedules["iterations"].astype(str))
    schedules = schedules.groupby(["flow", "series", "batch_size"], sort=False)["how"].agg(", ".join).reset_index()
    parts = [
        "# The fastest decoder at SeJD's deviation\n",
        f"One run of the matrix `fastest` on {machine(runs)}. Ratios are medians over paired rounds, with 95 % "
        f"intervals where they are to SeJD at tau {PAPER_TAU:g}. Written by `make fastest`; no number is typed in.\n",
        "## `auto` with its default budget\n",
        f"Times faster than SeJD as asked: {met['reached']} cells. Deviation no larger than SeJD's: "
        f"{met['no_larger']}; FID no larger than the larger of SeJD's and the exact samples': "
        f"{met['fid_no_larger']}. At most {FORWARD_RATIO:g} forward passes at "
        f"batches of {' and '.join(map(str, PARALLEL))}: {met['within_forward']}. Not slower by more than "
        f"{SLACK - 1:.0%} than any other decoder of no larger deviation than SeJD's: {met['not_slower']}.\n",
        _told(reached.drop(columns=STRICT_BARS, errors="ignore")),
    ]
    if "strict_reached" in reached:
        parts += [
            f"\n## `auto` with a budget of {SMALL_BUDGET:g}\n",
            f"Asked for: {SMALL_SPEEDUP:g} times faster than the best of {', '.join(CLASSIC)} within the budget. "
            f"Reached in {met['strict_reached']} cells.\n",
            _told(reached[[*CELL, *STRICT_BARS]]),
        ]
    parts += [
        *_without_verdict(frame, reached),
        "\n## Layer 1's share of the time\n",
        _told(shares(frame), (BASELINE, "sejd", AUTO)),
        "\n## What `auto` does, layer by layer\n",
        _told(schedules),
        "\n## Every cell\n",
        _told(frame[CELLS]),
        "\nFPE: token evaluations over those of one forward pass. Deviation: RMSE to the exact sample of the same "
        "latents. FID: by each dataset's own small feature network, comparable within one flow and batch size only.",
    ]
    return "\n".join(parts) + "\n"


def _told(frame: pd.DataFrame, shares: Sequence[str] = ()) -> str:
    return markdown(frame, {name: HEADINGS.get(name, name.replace("_", " ")) for name in map(str, frame)}, shares)


def _without_verdict(frame: pd.DataFrame, reached: pd.DataFrame) -> list[str]:
    judged = {(row["flow"], row["batch_size"]) for row in reached.to_dict("records")}
    left = [group for group in frame[CELL].drop_duplicates().itertuples(index=False, name=None) if group not in judged]
    names = ", ".join(f"{flow} at batch {batch}" for flow, batch in left)
    return [f"\nTimed, but without a deviation and so without a verdict: {names}."] if left else []


HEADINGS = {
    "batch_size": "batch",
    "series": "decoder",
    "how": "network calls",
    "wall_s": "time (s)",
    "speedup": "over sequential",
    "over_sejd": "over SeJD",
    "forward_ratio": "forward passes",
    "within_forward": "few enough",
    "deviation_rmse": "deviation",
    "deviation_sejd": "SeJD's",
    "fid": "FID",
    "fid_sejd": "SeJD's FID",
    "fid_exact": "sequential's FID",
    "fid_no_larger": "FID no larger",
    "fastest_other": "fastest other",
    "over_other": "over it",
    "strict_deviation": "deviation",
    "best_classic": "best of the three",
    "over_classic": "over it",
    "strict_reached": "reached",
    "sejd": "SeJD",
    "fpe": "FPE",
    "iterations": "iterations per layer",
}
"""Columns whose headings in the text are not their names."""
CELLS = [*CELL, "series", "tau", "wall_s", "speedup", "over_sejd", "forward_ratio", "deviation_rmse", "fid", "fpe"]
CELLS += ["depth", "iterations"]
STRICT_BARS = ["strict_deviation", "best_classic", "over_classic", "strict_reached"]


def _one(cells: pd.DataFrame, series: str, tau: float | None = None) -> pd.Series | None:
    rows = cells[cells["series"] == series]
    rows = rows if tau is None else rows[rows["tau"] == tau]
    return None if rows.empty else rows.iloc[0]


def _no_larger(fid: float, others: Sequence[float]) -> bool | None:
    """Whether a FID is no larger than the largest of some; None where one is not known."""
    return None if np.isnan([fid, *others]).any() else bool(fid <= max(others))


def _paired(timings: pd.DataFrame, slow: pd.Series, fast: pd.Series) -> Median:
    good = timings[timings["status"] == "ok"]
    rounds = (good[good["cell_id"] == row["cell_id"]] for row in (fast, slow))
    return median_interval(ratios_to(*rounds)["ratio"])


if __name__ == "__main__":
    *folders, path = sys.argv[1:]
    print(write(folders, Path(path)))
