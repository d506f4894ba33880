"""Which layers to keep sequential: all 2^K choices, by what they cost and spoil, and the best of them by the clock."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.plot import Omitted
from analysis.figures.style import (
    INK,
    decoder_style,
    figure,
    finish,
    grid_of_axes,
    legend_below,
    sequential_map,
    theme,
)
from analysis.load import Runs, lowest
from analysis.statistics import median_interval
from analysis.studies.base import Finding, Findings
from analysis.text import listing

PAPER, NONE, AUTO = "1", "none", "auto"
"""Names of choices: the paper's, UJD's, and the tuned schedule, which is none of the 2^K."""
CASE = ["checkpoint", "batch_size"]


def findings(runs: Runs) -> Findings:
    """Every choice, every layer alone, and what the clock said."""
    sets = choices(runs)
    alone = runs.table("layer_costs")[[*CASE, "num_tokens", "tau", "layer", "iterations", "deviation_rmse"]]
    ranked = single(sets, alone, runs)
    timed = clocked(runs, sets)
    seconds = per_layer(runs)
    return Findings(
        tables={"choices": sets.drop(columns=["cell_id", "predicted_s"]), "layers": ranked, "front": front(sets)},
        timed={"clock": timed, "layer-seconds": seconds, "answer": answers(sets, timed)},
        figures={"choices": draw(sets), "clock-timed": draw_clock(sets, timed)},
        values={"tau": float(sets["tau"].iloc[0]), "errors": timed["error"].abs().dropna()},
        claims=_claims(sets, timed),
    )


def choices(runs: Runs) -> pd.DataFrame:
    """Every choice of every flow and batch: cost and deviation, and whether no choice is better in both.

    `depth_beaten`: another one is at most as deep and deviates less, or deviates no more and is less deep.
    """
    sets = runs.table("layer_sets").copy()
    kept = sets["sequential_layers"].where(sets["sequential_layers"] != NONE, "")
    sets["sequential_count"] = kept.map(lambda name: len([part for part in name.split("+") if part]))
    sets["first_kept"] = kept.map(lambda name: "1" in name.split("+"))
    beaten = pd.concat([_beaten(part) for _, part in sets.groupby(CASE)])
    columns = [
        *CASE,
        "cell_id",
        "num_tokens",
        "num_layers",
        "tau",
        "sequential_layers",
        "sequential_count",
        "first_kept",
    ]
    columns += ["iterations", "depth", "token_evaluations", "deviation_rmse", "deviation_max", "predicted_s"]
    found = sets.assign(depth_beaten=beaten)[[*columns, "depth_beaten"]]
    return found.sort_values([*CASE, "sequential_count", "sequential_layers"]).reset_index(drop=True)


def _beaten(part: pd.DataFrame) -> pd.Series:
    """(choices,) whether another one is no worse in depth and deviation and better in one of them."""
    points = part[["depth", "deviation_rmse"]].to_numpy(float)
    no_worse = (points[:, None] <= points[None]).all(axis=2)
    return pd.Series((no_worse & ~no_worse.T).any(axis=0), index=part.index)


def front(sets: pd.DataFrame) -> pd.DataFrame:
    """The choices that none beats in depth and deviation at once, the least deep first."""
    kept = sets[~sets["depth_beaten"]].sort_values([*CASE, "depth"])
    return kept[[*CASE, "sequential_layers", "depth", "token_evaluations", "deviation_rmse"]].reset_index(drop=True)


def single(sets: pd.DataFrame, alone: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """One row per layer: its iterations, the deviation it causes alone, and that of keeping it alone sequential.

    `crm_share` is the layer's share of the convergence ranking metric, where `harness probe crm` was run.
    """
    kept = sets[sets["sequential_count"] == 1][[*CASE, "sequential_layers", "deviation_rmse"]]
    kept = kept.assign(layer=kept["sequential_layers"].astype(int)).rename(
        columns={"deviation_rmse": "deviation_if_kept"}
    )
    rows = alone.merge(kept.drop(columns="sequential_layers"), on=[*CASE, "layer"])
    squares = rows["deviation_rmse"] ** 2
    rows["share_of_deviation"] = squares / squares.groupby([rows[name] for name in CASE]).transform("sum")
    rows["rank"] = rows.groupby(CASE)["deviation_if_kept"].rank(method="min").astype(int)
    return (
        rows.merge(crm(runs), on=["checkpoint", "layer"], how="left")
        .sort_values([*CASE, "layer"])
        .reset_index(drop=True)
    )


def crm(runs: Runs) -> pd.DataFrame:
    """Share of each layer in the convergence ranking metric of GS-Jacobi; no rows where it was not probed."""
    rows = runs.table("crm")
    if rows.empty:
        return pd.DataFrame({"checkpoint": pd.Series(dtype="str"), "layer": pd.Series(dtype=int), "crm_share": []})
    return rows.groupby(["checkpoint", "layer"], as_index=False).agg(crm_share=("crm_share", "mean"))


def clocked(runs: Runs, sets: pd.DataFrame) -> pd.DataFrame:
    """Every choice that was timed: seconds, paired speed-up with its interval, and the cost model's error."""
    rounds = runs.table("layer_set_rounds")
    rows = []
    for (cell, batch, name), part in rounds.groupby(["cell_id", "batch_size", "sequential_layers"]):
        speedup = median_interval(part["sequential_s"] / part["wall_s"])
        rows.append(
            {"cell_id": cell, "batch_size": batch, "sequential_layers": name, "wall_s": part["wall_s"].median(),
             "speedup": speedup.value, "low": speedup.low, "high": speedup.high, "rounds": len(part)}
        )  # fmt: skip
    names = sets[["cell_id", "checkpoint"]].drop_duplicates()
    costs = sets[["cell_id", "batch_size", "sequential_layers", "deviation_rmse", "predicted_s"]]
    found = pd.DataFrame(rows).merge(names, on="cell_id")
    found = found.merge(costs, on=["cell_id", "batch_size", "sequential_layers"], how="left")
    found["error"] = found["predicted_s"] / found["wall_s"] - 1
    columns = [
        *CASE,
        "sequential_layers",
        "wall_s",
        "predicted_s",
        "error",
        "speedup",
        "low",
        "high",
        "rounds",
        "deviation_rmse",
    ]
    return found[columns].sort_values([*CASE, "wall_s"]).reset_index(drop=True)


def per_layer(runs: Runs) -> pd.DataFrame:
    """Median seconds of every layer, both ways."""
    seconds = runs.table("layer_seconds").merge(
        runs.table("layer_sets")[["cell_id", "checkpoint"]].drop_duplicates(), on="cell_id"
    )
    found = seconds.groupby([*CASE, "layer"], as_index=False)[["sequential_s", "jacobi_s"]].median()
    return found.assign(gain=found["sequential_s"] / found["jacobi_s"])


def answers(sets: pd.DataFrame, timed: pd.DataFrame) -> pd.DataFrame:
    """One row per flow and batch: the fastest choice that deviates no more than the paper's, by model and clock."""
    rows = []
    for (checkpoint, batch), part in sets.groupby(CASE):
        budget = float(part.loc[part["sequential_layers"] == PAPER, "deviation_rmse"].iloc[0])
        allowed = part[part["deviation_rmse"] <= budget]
        model = lowest(allowed, "predicted_s")
        clock = timed[(timed["checkpoint"] == checkpoint) & (timed["batch_size"] == batch)]
        within = clock[clock["deviation_rmse"] <= budget]
        best, speed = lowest(within, "wall_s"), clock.set_index("sequential_layers")["speedup"]
        rows.append(
            {"checkpoint": checkpoint, "batch_size": batch, "budget": budget, "by_model": model["sequential_layers"],
             "by_clock": best["sequential_layers"], "speedup": best["speedup"], "paper_speedup": speed[PAPER],
             "none_speedup": speed[NONE], "auto_speedup": speed.get(AUTO, np.nan),
             "faster_than_all": bool(best["speedup"] > 1)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _claims(sets: pd.DataFrame, timed: pd.DataFrame) -> tuple[Finding, ...]:
    found = []
    for checkpoint, part in sets.groupby("checkpoint", sort=False):
        words, first = [], []
        for batch, rows in part.groupby("batch_size"):
            kept = rows[rows["sequential_count"] == 1].sort_values("deviation_rmse")
            best = kept.iloc[0]["sequential_layers"]
            none = float(rows.loc[rows["sequential_layers"] == NONE, "deviation_rmse"].iloc[0])
            paper = float(rows.loc[rows["sequential_layers"] == PAPER, "deviation_rmse"].iloc[0])
            words.append(f"layer {best} at batch {batch} (the first: {none:.3f} to {paper:.3f})")
            first.append(best == PAPER)
        found.append(
            Finding(
                claim="first-layer-sequential",
                flow=str(checkpoint),
                measured=f"of single layers kept sequential, the deviation falls most with {listing(words)}",
                agrees=all(first),
                criterion="at every batch no other single layer kept sequential leaves a smaller deviation",
            )
        )
    return tuple(found)


def draw(sets: pd.DataFrame) -> Figure:
    """Depth against deviation of every choice, a panel per flow at its largest batch; the front as a line."""
    largest = sets[sets["batch_size"] == sets.groupby("checkpoint")["batch_size"].transform("max")]
    return _panels(largest, "depth", "depth: network calls in a row", None)


def draw_clock(sets: pd.DataFrame, timed: pd.DataFrame) -> Figure:
    """Predicted seconds of every choice against deviation, and where those that were timed lie."""
    largest = sets[sets["batch_size"] == sets.groupby("checkpoint")["batch_size"].transform("max")]
    return _panels(largest, "predicted_s", "seconds of a decode", timed)


def _panels(sets: pd.DataFrame, cost: str, label: str, timed: pd.DataFrame | None) -> Figure:
    cases = list(sets.groupby(CASE, sort=False))
    if not cases:
        raise Omitted("no choice of layers was measured")
    with theme():
        fig = figure(max(3.4 * len(cases), 4.4), 4.2)
        handles: dict[str, object] = {}
        colors = sequential_map()
        for ax, ((checkpoint, batch), rows) in zip(grid_of_axes(fig, len(cases), 3), cases, strict=True):
            for kept, mark in ((True, "o"), (False, "x")):
                part = rows[rows["first_kept"] == kept]
                shade = colors(0.25 if kept else 0.8)
                (handles[f"layer 1 {'sequential' if kept else 'by Jacobi'}"],) = ax.plot(
                    part[cost], part["deviation_rmse"], ls="none", marker=mark, ms=4, color=shade, alpha=0.8
                )
            best = rows.sort_values([cost, "deviation_rmse"])
            best = best[best["deviation_rmse"] < best["deviation_rmse"].cummin().shift(fill_value=np.inf)]
            (handles["none better"],) = ax.plot(
                best[cost], best["deviation_rmse"], color=INK, lw=0.9, drawstyle="steps-post"
            )
            for name, text in ((PAPER, "sejd"), (NONE, "ujd")):
                row, style = rows[rows["sequential_layers"] == name].iloc[0], decoder_style(text)
                (handles[f"{'layer 1' if name == PAPER else 'none'} sequential ({text})"],) = ax.plot(
                    row[cost], row["deviation_rmse"], ls="none", marker=style.marker, ms=8, color=style.color, zorder=3
                )
            if timed is not None:
                clock = timed[(timed["checkpoint"] == checkpoint) & (timed["batch_size"] == batch)]
                (handles["the choices timed"],) = ax.plot(
                    clock["wall_s"],
                    clock["deviation_rmse"],
                    ls="none",
                    marker="D",
                    ms=6,
                    mfc="none",
                    color=INK,
                    zorder=4,
                )
            ax.set(title=f"{checkpoint}, batch {batch}", xlabel=label, ylabel="deviation, RMSE", ylim=(0, None))
            finish(ax)
        legend_below(fig, handles)
    return fig
