"""tau between 0.1 and 2 on every shipped flow: what it costs, what it spoils, and the claims of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis.figures.style import INK, lines_against_tau, log_axis, panels
from analysis.load import PAPER_TAU, Runs
from analysis.published import reference
from analysis.quality import MAX_FID_INCREASE, MIN_SAMPLES, UNDECIDED, within
from analysis.regression import power
from analysis.studies.base import Finding, Findings, Verdict
from analysis.studies.cells import (
    deterministic,
    half_of_published,
    largest_batch,
    layerwise,
    reaches,
    rounds,
    speed,
    with_interval,
)
from analysis.text import listing, quantity

FEW_ITERATIONS = 6
"""The most that the paper's Table A3 has in a layer after the second, rounded down."""
HALF, DOUBT = 0.5, 0.1
"""Layer 1's share of a decode, and how near to it one decode says nothing: two of a cell differ by up to 9 points."""
CONFIDENT = f", with 95 % confidence from {MIN_SAMPLES} samples or more on the same latents"
LONG = "afhq"
"""The dataset, or what its variants begin with, on which the paper finds that UJD loses."""
LONG_TOKENS = 1024
"""The length of its sequences in the paper."""


def findings(runs: Runs) -> Findings:
    """Quality and cost against tau, iterations of every layer, and speed."""
    cells, layers = (largest_batch(frame) for frame in (deterministic(runs), layerwise(runs)))
    times = speed(runs)
    batch = largest_batch(times)
    return Findings(
        tables={"sensitivity": cells, "iterations": layers, "table-a3": table_a3(layers)},
        timed={"speed": times, "rounds": rounds(runs)},
        figures={"sensitivity": draw(cells)} | ({"speed-timed": draw_speed(batch)} if len(batch) else {}),
        values={
            "exponents": _exponents(cells),
            "paper_tau": PAPER_TAU,
            "limit": MAX_FID_INCREASE,
            "within": _within(cells),
            "flows": cells["flow"].unique().tolist(),
        },
        claims=(*_quality(cells), *_iterations(cells, layers), *_speed(times)),
    )


def table_a3(layers: pd.DataFrame) -> pd.DataFrame:
    """SeJD's iterations of every layer beside the paper's, of flows with its flow's number of layers and tokens."""
    columns = ["flow", "batch_size", "layer", "mode", "iterations", "published"]
    ours = layers[(layers["decoder"] == "sejd") & (layers["tau"] == PAPER_TAU)].assign(published=np.nan)
    found = [ours[:0]]
    for (_, dataset), rows in ours.groupby(["flow", "dataset"], sort=False):
        paper = reference("iterations", str(dataset)).set_index("layer")["value"]
        if len(paper) == rows["num_layers"].iloc[0] and paper.iloc[0] == rows["num_tokens"].iloc[0] - 1:
            found.append(rows.assign(published=rows["layer"].map(paper.to_dict())))
    return pd.concat(found)[columns].reset_index(drop=True)


def _exponents(cells: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (flow, series), part in cells[cells["tau"] > 0].groupby(["flow", "series"], sort=False):
        part = part.dropna(subset=["deviation_rmse"])
        fit = power(part["tau"].to_numpy(), part["deviation_rmse"].to_numpy())
        rows.append((flow, series, fit.value, fit.low, fit.high))
    return pd.DataFrame(rows, columns=["flow", "series", "exponent", "low", "high"])


def _within(cells: pd.DataFrame) -> pd.DataFrame:
    rows = cells[cells["tau"] > 0].dropna(subset=["fid_rise"]).sort_values("tau", kind="stable")
    kept = (rows["fid_rise_high"] <= MAX_FID_INCREASE).groupby([rows["flow"], rows["series"]]).cummin()
    largest = rows["tau"].where(kept).groupby([rows["flow"], rows["series"]]).max()
    order = rows.sort_index().drop_duplicates(["flow", "series"])[["flow", "series"]]
    return order.merge(largest.rename("largest_tau").reset_index(), on=["flow", "series"])


def _quality(cells: pd.DataFrame) -> Iterator[Finding]:
    for flow, rows in cells[cells["decoder"] == "sejd"].groupby("flow", sort=False):
        rows = rows.dropna(subset=["fid_rise"]).sort_values("tau")
        rises = ", ".join(f"{_rise(row)} at {row['tau']:g}" for row in rows.to_dict("records"))
        kept = [_kept(row) for row in rows.to_dict("records")]
        below, last = [one for one, tau in zip(kept, rows["tau"], strict=True) if tau < 1], kept[-1]
        if below and rows["tau"].max() > 1:
            yield Finding(
                "tau-slow-below-one",
                str(flow),
                f"SeJD's FID against sequential's, {_samples(rows)}: {rises}",
                False if False in below or last is True else UNDECIDED if UNDECIDED in [*below, last] else True,
                f"FID rises by at most {MAX_FID_INCREASE:.0%} at every tau below 1 and by more at the largest, above "
                f"1{CONFIDENT}",
            )
        for row in rows[rows["tau"] == PAPER_TAU].to_dict("records"):
            yield Finding(
                "quality-kept",
                str(flow),
                f"SeJD's FID changes by {_rise(row)} ({_samples(rows)}); its samples deviate by "
                f"{quantity(row['deviation_rmse'])} RMSE from the exact ones",
                _kept(row),
                f"FID is at most {MAX_FID_INCREASE:.0%} above sequential's at tau = {PAPER_TAU:g}{CONFIDENT}",
            )


def _rise(row: dict) -> str:
    low, high = row["fid_rise_low"], row["fid_rise_high"]
    return f"{row['fid_rise']:+.1%}" + ("" if pd.isna(low) else f" [{low:+.1%}, {high:+.1%}]")


def _kept(row: dict) -> Verdict:
    kept = within(row["fid_rise_low"], row["fid_rise_high"], MAX_FID_INCREASE)
    return UNDECIDED if kept is None else kept


def _samples(rows: pd.DataFrame) -> str:
    count = int(rows["num_samples"].iloc[0])
    return f"{count:,} samples{', too few' if count < MIN_SAMPLES else ''}"


def _iterations(cells: pd.DataFrame, layers: pd.DataFrame) -> Iterator[Finding]:
    chosen = layers[(layers["decoder"] == "sejd") & (layers["tau"] == PAPER_TAU) & (layers["mode"] != "sequential")]
    for flow, rows in chosen.groupby("flow", sort=False):
        later = rows.loc[rows["layer"] > 2, "iterations"]
        counts = ", ".join(f"{count:g}" for count in rows.sort_values("layer")["iterations"])
        yield Finding(
            "few-iterations",
            str(flow),
            f"layers 2, 3, ... take {counts} iterations of {int(rows['num_tokens'].iloc[0])} tokens",
            bool(later.max() <= FEW_ITERATIONS),
            f"every layer after the second takes at most {FEW_ITERATIONS}",
        )
    for flow, rows in cells[cells["decoder"].isin(["ujd", "sejd"])].groupby("flow", sort=False):
        depths = {str(series): part.sort_values("tau")["depth"] for series, part in rows.groupby("series", sort=False)}
        words = listing([f"{series} {depth.iloc[0]:g} to {depth.iloc[-1]:g}" for series, depth in depths.items()])
        yield Finding(
            "tau-faster",
            str(flow),
            f"network calls in a row from tau = {rows['tau'].min():g} to {rows['tau'].max():g}: {words}",
            all(depth.is_monotonic_decreasing and depth.iloc[-1] < depth.iloc[0] for depth in depths.values()),
            "they never rise with tau and are fewer at the largest; the time, which follows them, is told by the study "
            "and not judged",
        )


def _speed(times: pd.DataFrame) -> Iterator[Finding]:
    chosen = times[times["tau"].isna() | (times["tau"] == PAPER_TAU)]
    for (flow, batch), rows in chosen.groupby(["flow", "batch_size"], sort=False):
        named = {row["decoder"]: row for row in rows.to_dict("records")}
        where = f"{flow}, batch {batch}"
        if not {"sejd", "ujd"} <= set(named):
            continue
        sejd, ujd = named["sejd"], named["ujd"]
        share, long = sejd["first_layer_share"], ujd["num_tokens"] >= LONG_TOKENS
        half = half_of_published("sejd", ("cifar10", "cifar100", "afhq"))
        criterion = f"at least half of the paper's least factor, so {half:.2g}x, with all of the interval"
        yield Finding("speedup-sejd", where, with_interval(sejd), reaches(sejd, half), criterion, timed=True)
        measured = f"{with_interval(ujd)}, SeJD {with_interval(sejd)}"
        half = half_of_published("ujd", ("cifar10", "cifar100"))
        wins = reaches(ujd, half)
        verdict: Verdict = None
        if None not in (wins, reaches(sejd, half)):
            both = (wins, ujd["high"] < sejd["low"] or (UNDECIDED if ujd["low"] <= sejd["high"] else False))
            verdict = False if False in both else UNDECIDED if UNDECIDED in both else True
        criterion = f"at least half of the paper's least factor, so {half:.2g}x, and less than SeJD, with the intervals"
        yield Finding("speedup-ujd", where, measured, verdict, criterion, timed=True)
        criterion = f"at least {HALF:g} of one decode at tau = {PAPER_TAU:g}, undecided within {DOUBT:g} of that"
        verdict = UNDECIDED if abs(share - HALF) < DOUBT else bool(share > HALF)
        yield Finding("first-layer-share", where, f"layer 1: {share:.0%} of a decode", verdict, criterion, timed=True)
        if ujd["dataset"].startswith(LONG):
            measured = f"{with_interval(ujd)} at L = {ujd['num_tokens']}"
            criterion = (
                "slower than sequential with all of the interval"
                if long
                else f"not comparable: the claim is of L = {LONG_TOKENS}, and no trained flow here is so long"
            )
            loses = bool(ujd["high"] < 1) if long and pd.notna(ujd["high"]) else None
            yield Finding("ujd-loses", where, measured, loses, criterion, timed=True)


def draw(cells: pd.DataFrame) -> Figure:
    """A row for each flow: FID against sequential's, deviation, and depth, against tau."""
    groups = list(cells.groupby("flow", sort=False))
    with panels(9.6, 2.3 * len(groups) + 0.4, 3 * len(groups), 3, share_x=True) as (fig, axes, handles):
        for place, (flow, rows) in enumerate(groups):
            fid, deviation, depth = axes[3 * place : 3 * place + 3]
            lines_against_tau(fid, rows, "fid_rise", handles)
            fid.set_title(f"{flow}: FID above sequential's")
            fid.axhline(MAX_FID_INCREASE, color=INK, lw=1, ls=":", alpha=0.7)
            fid.set_yscale("symlog", linthresh=2 * MAX_FID_INCREASE)  # both 5 % and 1000 % are to be seen
            fid.set_ylim(top=2.5 * max(rows["fid_rise"].max(), MAX_FID_INCREASE))
            fid.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            lines_against_tau(deviation, rows, "deviation_rmse", handles)
            deviation.set(title=f"{flow}: deviation (RMSE)", ylim=(0, 1.08 * rows["deviation_rmse"].max()))
            lines_against_tau(depth, rows, "depth", handles)
            depth.set_title(f"{flow}: depth (calls)")
            depth.axhline(rows.loc[rows["decoder"] == "sequential", "depth"].iloc[0], color=INK, lw=1, alpha=0.5)
            log_axis(depth.yaxis)
            depth.set_ylim(bottom=10 ** np.floor(np.log10(rows["depth"].min())))
        for ax in axes[-3:]:
            ax.set_xlabel("tau")
    return fig


def draw_speed(times: pd.DataFrame) -> Figure:
    """Speed-up over sequential against tau, a panel for each flow, with its interval where there is one."""
    groups = list(times.groupby("flow", sort=False))
    with panels(3.0 * len(groups), 2.9, len(groups)) as (fig, axes, handles):
        for ax, (flow, rows) in zip(axes, groups, strict=True):
            lines_against_tau(ax, rows, "speedup", handles, band=0.15)
            ax.axhline(1, color=INK, lw=1, alpha=0.5)
            ax.set(title=f"{flow}: speed-up", xlabel="tau")
            ax.set_ylim(bottom=0)
    return fig
