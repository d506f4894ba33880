"""Which layers to keep sequential: the choices, by what they cost and spoil, and the best of them by the clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.plot import Omitted
from analysis.figures.style import INK, decoder_style, layer_lines, panels, sequential_map
from analysis.load import Runs, highest, lowest
from analysis.quality import MIN_SAMPLES, UNDECIDED
from analysis.statistics import median_interval
from analysis.studies.base import Finding, Findings, Verdict
from analysis.studies.cells import largest_batch
from analysis.text import listing, quantity

PAPER, NONE, AUTO = "1", "none", "auto"
"""Names of choices: the paper's, UJD's, and the tuned schedule, which is none of the 2^K."""
CASE = ["checkpoint", "batch_size"]
WAYS = ("first", "measured", "crm", "auto")
"""Of choosing what is kept sequential, in the order told."""

_SPEED = ["wall_s", "speedup", "low", "high", "coverage", "rounds"]


def findings(runs: Runs) -> Findings:
    """Every choice, every layer alone, and what the clock said."""
    sets = choices(runs)
    alone = runs.table("layer_costs")[[*CASE, "num_tokens", "tau", "layer", "iterations", "deviation_rmse"]]
    ranked = single(sets, alone, runs)
    timed = clocked(runs, sets)
    seconds, ways, errors = per_layer(runs), selected(runs, sets, ranked), layer_errors(runs)
    every = sets.groupby([*CASE, "num_layers"], as_index=False).size()
    return Findings(
        tables={
            "choices": sets.drop(columns=["cell_id", "predicted_s"]),
            "layers": ranked,
            "front": front(sets),
            "selected": ways,
            "errors": errors,
        },
        timed={
            "clock": timed,
            "layer-seconds": seconds,
            "answer": answers(sets, timed),
            "selected": ways.merge(timed[[*CASE, "sequential_layers", *_SPEED]], on=[*CASE, "sequential_layers"]),
            "rounds": rounds(runs, "layer_set_rounds"),
            "layer-rounds": rounds(runs, "layer_seconds"),
        },
        figures={
            "choices": draw(sets, "depth", "depth: network calls in a row"),
            "clock-timed": draw(sets, "predicted_s", "seconds of a decode", timed),
        }
        | ({"errors": draw_errors(errors)} if len(errors) else {}),
        values={
            "tau": float(sets["tau"].iloc[0]),
            "errors": timed["error"].abs().dropna(),
            "samples": _counts(sets),
            "few": every.loc[every["size"] < 2 ** every["num_layers"], "checkpoint"].unique().tolist(),
            "selected": _told(ways),
            "selection": errors.groupby("checkpoint")["samples"].first().to_dict() if len(errors) else {},
        },
        claims=_claims(sets),
    )


def choices(runs: Runs) -> pd.DataFrame:
    """Every choice of every flow and batch; `depth_beaten` where another is no worse in depth and deviation."""
    sets = runs.table("layer_sets")
    sets = sets[sets["sequential_layers"] != AUTO]
    known = sets.get("samples", sets["batch_size"]).fillna(sets["batch_size"])  # one batch, by an older probe
    sets = sets.assign(samples=known.astype(int))
    kept = sets["sequential_layers"].replace(NONE, "").str.split("+")
    kept = kept.map(lambda names: [name for name in names if name])
    sets = sets.assign(sequential_count=kept.map(len), first_kept=kept.map(lambda names: "1" in names))
    beaten = pd.concat([_beaten(part) for _, part in sets.groupby(CASE)])
    columns = [*CASE, "samples", "cell_id", "num_tokens", "num_layers", "tau", "sequential_layers", "sequential_count"]
    columns += ["first_kept", "iterations", "depth", "token_evaluations", "deviation_rmse", "deviation_max"]
    columns.append("predicted_s")
    found = sets.assign(depth_beaten=beaten)[[*columns, "depth_beaten"]]
    return found.sort_values([*CASE, "sequential_count", "sequential_layers"], ignore_index=True)


def _counts(sets: pd.DataFrame) -> list[str]:
    """What every flow's figures rest on, in words."""
    cases = sets.drop_duplicates(CASE).groupby("checkpoint", sort=False)
    return [
        f"{name}, {listing([f'{row.samples:,} at batch {row.batch_size}' for row in rows.itertuples()])}"
        for name, rows in cases
    ]


def _beaten(part: pd.DataFrame) -> pd.Series:
    points = part[["depth", "deviation_rmse"]].to_numpy(float)
    no_worse = (points[:, None] <= points[None]).all(axis=2)
    return pd.Series((no_worse & ~no_worse.T).any(axis=0), index=part.index)


def front(sets: pd.DataFrame) -> pd.DataFrame:
    """The choices that none beats in depth and deviation at once, the least deep first."""
    kept = sets[~sets["depth_beaten"]].sort_values([*CASE, "depth"])
    return kept[[*CASE, "sequential_layers", "depth", "token_evaluations", "deviation_rmse"]].reset_index(drop=True)


def single(sets: pd.DataFrame, alone: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """One row per layer: iterations, deviation alone and when kept alone, and `crm_share` where that was probed."""
    kept = sets[sets["sequential_count"] == 1]
    kept = kept.assign(layer=kept["sequential_layers"].astype(int), deviation_if_kept=kept["deviation_rmse"])
    rows = alone.merge(kept[[*CASE, "layer", "deviation_if_kept"]], on=[*CASE, "layer"])
    squares = rows["deviation_rmse"] ** 2
    rows["share_of_deviation"] = squares / squares.groupby([rows[name] for name in CASE]).transform("sum")
    rows["rank"] = rows.groupby(CASE)["deviation_if_kept"].rank(method="min").astype(int)
    rows = rows.merge(crm(runs), on=["checkpoint", "layer"], how="left")
    return rows.sort_values([*CASE, "layer"], ignore_index=True)


def crm(runs: Runs) -> pd.DataFrame:
    """Share of each layer in the convergence ranking metric of GS-Jacobi; no rows where it was not probed."""
    rows = runs.table("crm")
    if rows.empty:
        return pd.DataFrame({"checkpoint": pd.Series(dtype="str"), "layer": pd.Series(dtype=int), "crm_share": []})
    return rows.groupby(["checkpoint", "layer"], as_index=False).agg(crm_share=("crm_share", "mean"))


def selected(runs: Runs, sets: pd.DataFrame, ranked: pd.DataFrame) -> pd.DataFrame:
    """One row per flow, batch and way of choosing: what is kept, and `of_first`, its deviation over the first's.

    Ways that were not probed have no row: `auto` where no schedule is stored.
    """
    chosen, every = runs.table("layer_choice"), runs.table("layer_sets")
    columns = ["samples", "depth", "token_evaluations", "deviation_rmse"]
    rows = []
    for case, part in every.groupby(CASE):
        names = {"first": PAPER, "auto": AUTO}
        layers = ranked[(ranked[CASE] == list(case)).all(axis=1)].dropna(subset=["crm_share"])
        if len(layers):
            names["crm"] = str(int(highest(layers, "crm_share")["layer"]))
        if len(chosen):
            kept = chosen[(chosen[CASE] == list(case)).all(axis=1) & chosen["kept"].astype(bool)]
            names["measured"] = "+".join(map(str, sorted(kept["layer"])))
        known = part.set_index("sequential_layers")[columns]
        rows += [(*case, way, names[way], *known.loc[names[way]]) for way in WAYS if names.get(way) in known.index]
    found = pd.DataFrame(rows, columns=[*CASE, "way", "sequential_layers", *columns]).astype({"samples": int})
    first = found[found["way"] == "first"][[*CASE, "deviation_rmse"]].rename(columns={"deviation_rmse": "_first"})
    found = found.merge(first, on=CASE)
    return found.assign(of_first=found["deviation_rmse"] / found["_first"]).drop(columns="_first")


def _told(ways: pd.DataFrame) -> list[str]:
    """A sentence for each flow and batch: what measurement keeps and leaves, against the first and CRM's choice."""
    told = []
    for (checkpoint, batch), rows in ways.groupby(CASE):
        by = {row["way"]: row for row in rows.to_dict("records")}
        if "measured" not in by:
            continue
        own, first = by["measured"], by["first"]
        words = f"{checkpoint}, batch {batch}, {own['samples']:,} samples: measurement keeps "
        if own["sequential_layers"] == PAPER:
            words += f"the first too, {quantity(own['deviation_rmse'])}"
        else:
            words += (
                f"{own['sequential_layers']} and leaves a deviation of {quantity(own['deviation_rmse'])}, "
                f"{quantity(own['of_first'])} times the {quantity(first['deviation_rmse'])} that keeping the first "
                f"leaves, in {quantity(own['depth'])} calls against {quantity(first['depth'])}"
            )
        others = {"crm": "CRM's choice, {},", "auto": "`auto`"}
        for way, name in others.items():
            if way in by:
                words += f"; {name.format(by[way]['sequential_layers'])} leaves {quantity(by[way]['deviation_rmse'])}"
                words += f" in {quantity(by[way]['depth'])}"
        told.append(words)
    return told


def layer_errors(runs: Runs) -> pd.DataFrame:
    """What is left of every layer after t iterations, and the `deviation` of the sample that it causes."""
    rows = runs.table("layer_errors")
    columns = ["checkpoint", "layer", "iteration", "samples", "residual", "error_rms", "gain"]
    found = rows.reindex(columns=columns).drop_duplicates(columns[:3]).sort_values(columns[:3], ignore_index=True)
    return found.assign(deviation=found["error_rms"] * found["gain"])


def draw_errors(errors: pd.DataFrame) -> Figure:
    """A panel per flow: the deviation that stopping a layer after t iterations causes, a line per layer."""
    groups = list(errors.groupby("checkpoint"))
    styles = layer_lines(sorted(errors["layer"].unique()))
    with panels(max(3.0 * len(groups), 4.4), 3.4, len(groups), share_y=True) as (fig, axes, handles):
        for ax, (checkpoint, rows) in zip(axes, groups, strict=True):
            for layer, line in rows[rows["deviation"] > 0].groupby("layer"):
                (handles[f"layer {layer}"],) = ax.plot(line["iteration"], line["deviation"], **styles[layer], ms=3.5)
            ax.set(title=checkpoint, xlabel="iteration", xscale="log", yscale="log")
        axes[0].set_ylabel("deviation of the sample, RMSE")
    return fig


def clocked(runs: Runs, sets: pd.DataFrame) -> pd.DataFrame:
    """Every choice that was timed: seconds, paired speed-up with its interval, and the cost model's error."""
    key = ["cell_id", "batch_size", "sequential_layers"]
    rows = []
    for names, part in runs.table("layer_set_rounds").groupby(key):
        speedup = median_interval(part["sequential_s"] / part["wall_s"])
        rows.append((*names, part["wall_s"].median(), *speedup, len(part)))
    found = pd.DataFrame(rows, columns=[*key, "wall_s", "speedup", "low", "high", "coverage", "rounds"])
    found = found.merge(sets[["cell_id", "checkpoint"]].drop_duplicates(), on="cell_id")
    found = found.merge(sets[[*key, "deviation_rmse", "predicted_s"]], on=key, how="left")
    found["error"] = found["predicted_s"] / found["wall_s"] - 1
    columns = ["wall_s", "predicted_s", "error", "speedup", "low", "high", "coverage", "rounds", "deviation_rmse"]
    return found[[*CASE, "sequential_layers", *columns]].sort_values([*CASE, "wall_s"], ignore_index=True)


def rounds(runs: Runs, table: str) -> pd.DataFrame:
    """A table of timed rounds, the flow's name in place of the cell's."""
    names = runs.table("layer_sets")[["cell_id", "checkpoint"]].drop_duplicates()
    return names.merge(runs.table(table).drop(columns=["checkpoint", "run"], errors="ignore"), on="cell_id").drop(
        columns=["cell_id", "cell_key"], errors="ignore"
    )


def per_layer(runs: Runs) -> pd.DataFrame:
    """Median seconds of every layer, both ways."""
    found = (
        rounds(runs, "layer_seconds").groupby([*CASE, "layer"], as_index=False)[["sequential_s", "jacobi_s"]].median()
    )
    return found.assign(gain=found["sequential_s"] / found["jacobi_s"])


def answers(sets: pd.DataFrame, timed: pd.DataFrame) -> pd.DataFrame:
    """One row per flow and batch: the fastest choice that deviates no more than the paper's, by model and clock."""
    rows = []
    for (checkpoint, batch), part in sets.groupby(CASE):
        budget = float(part.loc[part["sequential_layers"] == PAPER, "deviation_rmse"].iloc[0])
        model = lowest(part[part["deviation_rmse"] <= budget], "predicted_s")
        clock = timed[(timed["checkpoint"] == checkpoint) & (timed["batch_size"] == batch)]
        best = lowest(clock[clock["deviation_rmse"] <= budget], "wall_s")
        speed = clock.set_index("sequential_layers")["speedup"].reindex([PAPER, NONE, AUTO])
        names = [row["sequential_layers"] for row in (model, best)]
        rows.append((checkpoint, batch, budget, *names, best["speedup"], *speed, bool(best["speedup"] > 1)))
    columns = ["budget", "by_model", "by_clock", "speedup", "paper_speedup", "none_speedup", "auto_speedup"]
    return pd.DataFrame(rows, columns=[*CASE, *columns, "faster_than_all"])


def _claims(sets: pd.DataFrame) -> tuple[Finding, ...]:
    found = []
    for checkpoint, part in sets.groupby("checkpoint", sort=False):
        words, first, few = [], [], False
        for batch, rows in part.groupby("batch_size"):
            best = lowest(rows[rows["sequential_count"] == 1], "deviation_rmse")["sequential_layers"]
            count = int(rows["samples"].iloc[0])
            few |= count < MIN_SAMPLES
            deviation = rows.set_index("sequential_layers")["deviation_rmse"]
            share = f"{count} sample{'' if count == 1 else 's'}"
            falls = f"the first: {deviation[NONE]:.3f} to {deviation[PAPER]:.3f}"
            words.append(f"layer {best} at batch {batch} ({share}; {falls})")
            first.append(best == PAPER)
        measured = f"of single layers kept sequential, the deviation falls most with {listing(words)}"
        criterion = "at every batch no other single layer kept sequential leaves a smaller deviation, from "
        criterion += f"{MIN_SAMPLES} samples or more"
        verdict: Verdict = UNDECIDED if few else all(first)
        found.append(Finding("first-layer-sequential", str(checkpoint), measured, verdict, criterion))
    return tuple(found)


def draw(sets: pd.DataFrame, cost: str, label: str, timed: pd.DataFrame | None = None) -> Figure:
    """Cost against deviation of every choice, a panel per flow at its largest batch; the front as a line."""
    cases = list(largest_batch(sets, "checkpoint").groupby(CASE, sort=False))
    if not cases:
        raise Omitted("no choice of layers was measured")
    with panels(max(3.4 * len(cases), 4.4), 4.2, len(cases), 3) as (fig, axes, handles):
        for ax, ((checkpoint, batch), rows) in zip(axes, cases, strict=True):

            def dots(part: pd.DataFrame, name: str, x: str = cost, ax: Axes = ax, **style: Any) -> None:
                (handles[name],) = ax.plot(part[x], part["deviation_rmse"], **{"ls": "none"} | style)

            for kept, mark, shade in ((True, "o", 0.25), (False, "x", 0.8)):
                name = f"layer 1 {'sequential' if kept else 'by Jacobi'}"
                color = sequential_map()(shade)
                dots(rows[rows["first_kept"] == kept], name, marker=mark, ms=4, color=color, alpha=0.8)
            best = rows.sort_values([cost, "deviation_rmse"])
            best = best[best["deviation_rmse"] < best["deviation_rmse"].cummin().shift(fill_value=np.inf)]
            dots(best, "none better", color=INK, lw=0.9, ls="-", drawstyle="steps-post")
            for layers, name, decoder in ((PAPER, "layer 1", "sejd"), (NONE, "none", "ujd")):
                row, look = rows[rows["sequential_layers"] == layers].iloc[:1], decoder_style(decoder)
                dots(row, f"{name} sequential ({decoder})", marker=look.marker, ms=8, color=look.color, zorder=3)
            if timed is not None:
                clock = timed[(timed["checkpoint"] == checkpoint) & (timed["batch_size"] == batch)]
                dots(clock, "the choices timed", "wall_s", marker="D", ms=6, mfc="none", color=INK, zorder=4)
            ax.set(title=f"{checkpoint}, batch {batch}", xlabel=label, ylabel="deviation, RMSE", ylim=(0, None))
    return fig
