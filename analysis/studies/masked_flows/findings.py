"""Masked autoregressive flows (the paper's E.3): iterations, both speed-ups, and what the samples look like."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import INK, lines_against_tau, log_axis, panels
from analysis.load import BASELINE, PAPER_TAU, Runs
from analysis.published import published
from analysis.statistics import paired_speedups
from analysis.studies.base import Finding, Findings
from analysis.studies.cells import NAMES, deterministic, half_of_published, reaches, rounds, with_interval
from analysis.text import listing, percent

UNCACHED = "uncached"
"""The paper's baseline: a full forward pass for every token."""
PAPER = {"ising": "e3-ising", "maf-digits": "e3-binary-mnist"}
"""The paper's experiment beside each of ours."""
CLAIMS = {"ising": "maf-ising", "maf-digits": "maf-digits"}
SIDES = range(2, 65)
"""Sides of square lattices among which the one is looked for whose independent spins explain the paper's figure."""
KEPT = 0.05
"""An observable counts as kept when it moves by no more than this share of what the coupling does to it."""


def findings(runs: Runs) -> Findings:
    """Costs, observables, and speed over either baseline."""
    cells, times = deterministic(runs), speed(runs)
    columns = ["decoder", "observable", "mean", "standard_error", "difference", "difference_error", "expected"]
    observed = runs.table("observables").reindex(columns=[*columns, "independent", "num_samples"])
    observed = observed.sort_values(["observable", "decoder"]).reset_index(drop=True)
    paper = published()
    paper = paper[paper["key"].isin(PAPER.values())].reset_index(drop=True)
    return Findings(
        tables={"costs": cells, "observables": observed, "published": paper},
        timed={"speed": times, "rounds": rounds(runs)},
        figures={"speed-timed": draw(times)} if times["speedup"].notna().any() else {},
        values={
            "lattice": _lattice(paper),
            "paper_tau": PAPER_TAU,
            "largest": largest(observed),
            "cached": times.loc[times["decoder"] == BASELINE, ["flow", "batch_size", "speedup", "low", "high"]],
        },
        claims=tuple(_claims(times, observed)),
    )


def speed(runs: Runs) -> pd.DataFrame:
    """A row per timed cell: its median time, and its speed-up over `uncached` and, `cached_`, over `sequential`."""
    numbers = ["speedup", "low", "high", "coverage"]
    over, ours = (
        paired_speedups(runs.tables["timings"], baseline=name)[["cell_id", *numbers]] for name in (UNCACHED, BASELINE)
    )
    found = runs.cells[["cell_id", *NAMES]].merge(runs.speedups[["cell_id", "wall_s", "rounds"]], on="cell_id")
    ours = ours.rename(columns={name: f"cached_{name}" for name in numbers})
    return found.merge(over, on="cell_id").merge(ours, on="cell_id").drop(columns="cell_id")


def independent(sites: int) -> float:
    """Mean |magnetisation| of an even number of fair spins that ignore each other.

    >>> independent(2)
    0.5
    """
    return math.comb(sites, sites // 2) / 2**sites


def largest(observed: pd.DataFrame) -> dict[str, float]:
    """By observable, how far UJD at the paper's tau moves it, over how far the coupling does from independent spins."""
    rows = observed[observed["decoder"] == f"ujd tau={PAPER_TAU}"]
    share = rows["difference"].abs() / (rows["expected"] - rows["independent"]).abs()
    return dict(zip(rows["observable"].astype(str), share.astype(float), strict=True))


def _lattice(paper: pd.DataFrame) -> dict[str, float]:
    reported = paper.loc[paper["quantity"] == "abs_magnetisation", "value"].mean()
    side = min((side for side in SIDES if side % 2 == 0), key=lambda side: abs(independent(side**2) - reported))
    return {"side": side, "abs_magnetisation": independent(side**2), "reported": reported}


def _claims(times: pd.DataFrame, observed: pd.DataFrame) -> list[Finding]:
    found = []
    chosen = times[(times["decoder"] == "ujd") & (times["tau"] == PAPER_TAU) & times["flow"].isin(CLAIMS)]
    for flow, rows in chosen.groupby("flow", sort=False):
        row = rows.sort_values("batch_size").to_dict("records")[-1]
        cached = {name: row[f"cached_{name}"] for name in ("speedup", "low", "high", "coverage")}
        text = (
            f"UJD at tau = {PAPER_TAU:g}, batch {row['batch_size']:,}: {with_interval(row)} over sequential decoding "
            f"without a cache, the paper's baseline, {with_interval(cached)} over sequential decoding with one"
        )
        half = half_of_published("ujd", (PAPER[str(flow)],))
        agrees = reaches(row, half)
        criterion = f"at least half of the paper's {2 * half:g}x over its baseline with all of the interval"
        kept = largest(observed) if flow == "ising" else {}
        if kept:
            moved = [f"{name} by {percent(share, 1)}" for name, share in kept.items()]
            text += f"; it moves {listing(moved)} of what the coupling does to it"
            agrees = agrees if agrees is None or max(kept.values()) <= KEPT else False
            criterion += f"; no observable moves by more than {percent(KEPT)} of what the coupling does to it"
        found.append(Finding(CLAIMS[str(flow)], str(flow), text, agrees, criterion, timed=True))
    return found


def draw(times: pd.DataFrame) -> Figure:
    """Speed-up over the paper's baseline against tau, a panel for each flow and batch size; dotted: our sequential."""
    groups = list(times.groupby(["flow", "batch_size"], sort=False))
    with panels(3.0 * len(groups), 2.9, len(groups), share_y=True) as (fig, axes, handles):
        for ax, ((flow, batch), rows) in zip(axes, groups, strict=True):
            lines_against_tau(ax, rows, "speedup", handles, band=0.2)
            for value in rows.loc[rows["decoder"] == BASELINE, "speedup"]:
                handles["sequential with a cache"] = ax.axhline(value, color=INK, lw=1, ls=":")
            log_axis(ax.yaxis, [1, 2, 4, 8, 16])
            ax.set(title=f"{flow}, batch {batch:,}", xlabel="tau")
        axes[0].set_ylabel("speed-up over uncached")
    return fig
