"""tau between 0.1 and 2 on every shipped flow: what it costs, what it spoils, and the claims of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis.figures.style import INK, figure, finish, legend_below, lines_against_tau, log_axis, theme
from analysis.load import PAPER_TAU, Runs
from analysis.quality import MAX_FID_INCREASE
from analysis.regression import power
from analysis.studies.base import Finding, Findings
from analysis.studies.cells import deterministic, faster, layerwise, slower, speed, with_interval
from analysis.text import listing, quantity

BATCH = 16
FEW_ITERATIONS = 6
"""The most that the paper's Table A3 has in a layer after the second, rounded down."""
HALF = 0.5
LONG = "afhq"
"""The dataset, or what its variants begin with, on which the paper finds that UJD loses."""
LONG_TOKENS = 1024
"""The length of its sequences in the paper."""


def findings(runs: Runs) -> Findings:
    """Quality and cost against tau, iterations of every layer, and speed."""
    cells = deterministic(runs)
    cells = cells[cells["batch_size"] == BATCH].reset_index(drop=True)
    layers = layerwise(runs)
    layers = layers[layers["batch_size"] == BATCH].reset_index(drop=True)
    times = speed(runs)
    batch = times[times["batch_size"] == BATCH]
    values = {
        "exponents": _exponents(cells),
        "paper_tau": PAPER_TAU,
        "limit": MAX_FID_INCREASE,
        "within": _within(cells),
        "flows": list(dict.fromkeys(cells["flow"])),
    }
    return Findings(
        tables={"sensitivity": cells, "iterations": layers},
        timed={"speed": times},
        figures={"sensitivity": draw(cells)} | ({"speed-timed": draw_speed(batch)} if len(batch) else {}),
        values=values,
        claims=(*_quality(cells), *_iterations(cells, layers), *_speed(times)),
    )


def _exponents(cells: pd.DataFrame) -> pd.DataFrame:
    """How the deviation grows with tau: the slope of the logarithms, with Student's 95 % interval."""
    rows = []
    for (flow, series), part in cells[cells["tau"] > 0].groupby(["flow", "series"], sort=False):
        part = part.dropna(subset=["deviation_rmse"])
        fit = power(part["tau"].to_numpy(), part["deviation_rmse"].to_numpy())
        rows.append({"flow": flow, "series": series, "exponent": fit.value, "low": fit.low, "high": fit.high})
    return pd.DataFrame(rows)


def _within(cells: pd.DataFrame) -> pd.DataFrame:
    """The largest tau up to which FID stays within the paper's 5 % at every smaller one too."""
    rows = []
    for (flow, series), part in cells[cells["tau"] > 0].groupby(["flow", "series"], sort=False):
        part = part.dropna(subset=["fid_rise"]).sort_values("tau")
        if part.empty:
            continue
        kept = part["tau"][(part["fid_rise"] <= MAX_FID_INCREASE).cummin()]
        rows.append({"flow": flow, "series": series, "largest_tau": kept.max() if len(kept) else np.nan})
    return pd.DataFrame(rows)


def _quality(cells: pd.DataFrame) -> Iterator[Finding]:
    for flow, rows in cells[cells["decoder"] == "sejd"].groupby("flow", sort=False):
        rows = rows.dropna(subset=["fid_rise"]).sort_values("tau")
        if rows["tau"].nunique() < 2:
            continue
        rises = ", ".join(f"{row.fid_rise:+.1%} at {row.tau:g}" for row in rows.itertuples())
        below = rows.loc[rows["tau"] < 1, "fid_rise"].max()
        last = rows["fid_rise"].iloc[-1]
        yield Finding(
            claim="tau-slow-below-one",
            flow=str(flow),
            measured=f"SeJD's FID against sequential's, {_samples(rows)}: {rises}",
            agrees=bool(below <= MAX_FID_INCREASE < last),
            criterion=f"FID rises by at most {MAX_FID_INCREASE:.0%} at every tau below 1 and by more at the largest",
        )
        for row in rows[rows["tau"] == PAPER_TAU].to_dict("records"):
            yield Finding(
                claim="quality-kept",
                flow=str(flow),
                measured=(
                    f"SeJD's FID changes by {row['fid_rise']:+.1%} ({_samples(rows)}); its samples deviate by "
                    f"{quantity(row['deviation_rmse'])} RMSE from the exact ones"
                ),
                agrees=bool(row["fid_rise"] <= MAX_FID_INCREASE),
                criterion=f"FID is at most {MAX_FID_INCREASE:.0%} above sequential's at tau = {PAPER_TAU:g}",
            )


def _samples(rows: pd.DataFrame) -> str:
    return f"{int(rows['num_samples'].iloc[0]):,} samples"


def _iterations(cells: pd.DataFrame, layers: pd.DataFrame) -> Iterator[Finding]:
    chosen = layers[(layers["decoder"] == "sejd") & (layers["tau"] == PAPER_TAU) & (layers["mode"] != "sequential")]
    for flow, rows in chosen.groupby("flow", sort=False):
        later = rows[rows["layer"] > 2]
        counts = ", ".join(f"{count:g}" for count in rows.sort_values("layer")["iterations"])
        yield Finding(
            claim="few-iterations",
            flow=str(flow),
            measured=f"layers 2, 3, ... take {counts} iterations of {int(rows['num_tokens'].iloc[0])} tokens",
            agrees=bool(later["iterations"].max() <= FEW_ITERATIONS),
            criterion=f"every layer after the second takes at most {FEW_ITERATIONS}",
        )
    for flow, rows in cells[cells["decoder"].isin(["ujd", "sejd"])].groupby("flow", sort=False):
        parts, falls = [], []
        for series, part in rows.groupby("series", sort=False):
            part = part.sort_values("tau")
            falls.append(part["depth"].is_monotonic_decreasing)
            parts.append(f"{series} {part['depth'].iloc[0]:g} to {part['depth'].iloc[-1]:g}")
        taus = rows["tau"]
        yield Finding(
            claim="tau-faster",
            flow=str(flow),
            measured=f"network calls in a row from tau = {taus.min():g} to {taus.max():g}: {listing(parts)}",
            agrees=all(falls),
            criterion="they never rise with tau",
        )


def _speed(times: pd.DataFrame) -> Iterator[Finding]:
    chosen = times[times["tau"].isna() | (times["tau"] == PAPER_TAU)]
    for (flow, batch), rows in chosen.groupby(["flow", "batch_size"], sort=False):
        named = {row["decoder"]: row for row in rows.to_dict("records")}
        where = f"{flow}, batch {batch}"
        if {"sejd", "ujd"} <= set(named):
            sejd, ujd = named["sejd"], named["ujd"]
            yield Finding(
                claim="speedup-sejd",
                flow=where,
                measured=with_interval(sejd),
                agrees=faster(sejd),
                criterion="faster than sequential with all of the 95 % interval (five rounds or more)",
                timed=True,
            )
            yield Finding(
                claim="speedup-ujd",
                flow=where,
                measured=f"{with_interval(ujd)}, SeJD {with_interval(sejd)}",
                agrees=None if faster(ujd) is None else bool(faster(ujd) and ujd["speedup"] < sejd["speedup"]),
                criterion="faster than sequential with all of the interval, and its median below SeJD's",
                timed=True,
            )
            share = sejd["first_layer_share"]
            yield Finding(
                claim="first-layer-share",
                flow=where,
                measured=f"layer 1 takes {share:.0%} of a SeJD decode",
                agrees=bool(share >= HALF),
                criterion=f"at least {HALF:.0%} of one traced decode at tau = {PAPER_TAU:g}",
                timed=True,
            )
            if ujd["dataset"].startswith(LONG):
                long = ujd["num_tokens"] >= LONG_TOKENS
                yield Finding(
                    claim="ujd-loses",
                    flow=where,
                    measured=f"{with_interval(ujd)} at L = {ujd['num_tokens']}",
                    agrees=slower(ujd) if long else None,
                    criterion=(
                        "slower than sequential with all of the interval"
                        if long
                        else f"not comparable: the claim is of L = {LONG_TOKENS}, and no trained flow here is so long"
                    ),
                    timed=True,
                )


def draw(cells: pd.DataFrame) -> Figure:
    """A row for each flow: FID against sequential's, deviation, and depth, against tau."""
    flows = list(dict.fromkeys(cells["flow"]))
    measures = {
        "fid_rise": "FID above sequential's",
        "deviation_rmse": "deviation (RMSE)",
        "depth": "depth (calls)",
    }
    with theme():
        fig = figure(9.6, 2.3 * len(flows) + 0.4)
        axes = fig.subplots(len(flows), len(measures), squeeze=False, sharex=True)
        handles: dict[str, object] = {}
        for line, flow in zip(axes, flows, strict=True):
            rows = cells[cells["flow"] == flow]
            for ax, (column, label) in zip(line, measures.items(), strict=True):
                lines_against_tau(ax, rows, column, handles)
                finish(ax)
                ax.set_title(f"{flow}: {label}")
                if column == "fid_rise":
                    ax.axhline(MAX_FID_INCREASE, color=INK, lw=1, ls=":", alpha=0.7)
                    ax.set_yscale("symlog", linthresh=2 * MAX_FID_INCREASE)  # both 5 % and 1000 % are to be seen
                    ax.set_ylim(top=2.5 * max(rows[column].max(), MAX_FID_INCREASE))
                    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
                elif column == "deviation_rmse":
                    ax.set_ylim(0, 1.08 * rows[column].max())
                else:
                    exact = rows.loc[rows["decoder"] == "sequential", "depth"]
                    ax.axhline(exact.iloc[0], color=INK, lw=1, alpha=0.5)
                    log_axis(ax.yaxis)
                    ax.set_ylim(bottom=10 ** np.floor(np.log10(rows["depth"].min())))
        for ax in axes[-1]:
            ax.set_xlabel("tau")
        legend_below(fig, handles)
    return fig


def draw_speed(times: pd.DataFrame) -> Figure:
    """Speed-up over sequential against tau, a panel for each flow, with its interval where there is one."""
    flows = list(dict.fromkeys(times["flow"]))
    with theme():
        fig = figure(3.0 * len(flows), 2.9)
        axes = fig.subplots(1, len(flows), squeeze=False)[0]
        handles: dict[str, object] = {}
        for ax, flow in zip(axes, flows, strict=True):
            rows = times[times["flow"] == flow]
            lines_against_tau(ax, rows, "speedup", handles, band=0.15)
            finish(ax)
            ax.axhline(1, color=INK, lw=1, alpha=0.5)
            ax.set(title=f"{flow}: speed-up", xlabel="tau")
            ax.set_ylim(bottom=0)
        legend_below(fig, handles)
    return fig
