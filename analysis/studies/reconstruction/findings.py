"""Real images, encoded exactly and decoded at every tau (the paper's Appendix E.4)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import INK, lines_against_tau, panels
from analysis.load import PAPER_TAU, Runs
from analysis.published import published
from analysis.studies.base import Finding, Findings
from analysis.studies.cells import deterministic, largest_batch
from analysis.text import quantity


def findings(runs: Runs) -> Findings:
    """MSE of the reconstruction of every flow, decoder and tau."""
    paper = published()
    paper = paper[paper["quantity"] == "reconstruction_mse"][["name", "value", "source"]]
    cells = deterministic(runs).dropna(subset=["reconstruction_mse"])
    columns = ["flow", "batch_size", "decoder", "series", "tau", "reconstruction_mse", "iterations"]
    frame = largest_batch(cells)[columns].reset_index(drop=True)
    exact = frame.loc[frame["decoder"] == "sequential", "reconstruction_mse"]
    largest = float(paper["value"].max())
    sejd = frame[frame["decoder"] == "sejd"]
    claims = []
    for row in sejd[sejd["tau"] == PAPER_TAU].to_dict("records"):
        others = sejd[sejd["flow"] == row["flow"]].sort_values("tau")
        words = ", ".join(f"{quantity(one.reconstruction_mse)} at {one.tau:g}" for one in others.itertuples())
        claims.append(
            Finding(
                "reconstruction",
                row["flow"],
                f"SeJD's MSE by tau: {words}",
                bool(row["reconstruction_mse"] <= largest),
                f"at tau = {PAPER_TAU:g} at most the paper's largest, {quantity(largest)}",
            )
        )
    return Findings(
        tables={"reconstruction": frame, "published": paper},
        figures={"reconstruction": draw(frame, largest)} if len(frame) else {},
        values={"exact": exact.max(), "paper": paper, "largest": largest, "paper_tau": PAPER_TAU},
        claims=tuple(claims),
    )


def draw(frame: pd.DataFrame, largest: float) -> Figure:
    """MSE against tau, both logarithmic, a panel for each flow; dotted the paper's largest."""
    groups = list(frame.groupby("flow", sort=False))
    with panels(3.0 * len(groups), 2.9, len(groups), share_y=True) as (fig, axes, handles):
        for ax, (flow, rows) in zip(axes, groups, strict=True):
            lines_against_tau(ax, rows, "reconstruction_mse", handles)
            handles["the paper's largest, SeJD at its tau"] = ax.axhline(largest, color=INK, lw=1, ls=":")
            ax.set(title=flow, xlabel="tau", yscale="log")
        axes[0].set_ylabel("MSE (image units)")
    return fig
