"""Real images, encoded exactly and decoded at every tau (the paper's Appendix E.4)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import INK, figure, finish, legend_below, lines_against_tau, theme
from analysis.load import PAPER_TAU, Runs
from analysis.published import published
from analysis.studies.base import Finding, Findings
from analysis.studies.cells import deterministic
from analysis.studies.tau.findings import BATCH
from analysis.text import quantity


def findings(runs: Runs) -> Findings:
    """MSE of the reconstruction of every flow, decoder and tau."""
    paper = published()
    paper = paper[paper["quantity"] == "reconstruction_mse"][["name", "value", "source"]]
    cells = deterministic(runs).dropna(subset=["reconstruction_mse"])
    columns = ["flow", "batch_size", "decoder", "series", "tau", "reconstruction_mse", "iterations"]
    frame = cells.loc[cells["batch_size"] == BATCH, columns].reset_index(drop=True)
    exact = frame.loc[frame["decoder"] == "sequential", "reconstruction_mse"]
    claims = []
    for row in frame[(frame["decoder"] == "sejd") & (frame["tau"] == PAPER_TAU)].to_dict("records"):
        others = frame[(frame["flow"] == row["flow"]) & (frame["decoder"] == "sejd")].sort_values("tau")
        words = ", ".join(f"{quantity(one.reconstruction_mse)} at {one.tau:g}" for one in others.itertuples())
        claims.append(
            Finding(
                claim="reconstruction",
                flow=row["flow"],
                measured=f"SeJD's MSE by tau: {words}",
                agrees=bool(row["reconstruction_mse"] <= paper["value"].max()),
                criterion=f"at tau = {PAPER_TAU:g} at most the paper's largest, {quantity(paper['value'].max())}",
            )
        )
    largest = float(paper["value"].max())
    return Findings(
        tables={"reconstruction": frame, "published": paper},
        figures={"reconstruction": draw(frame, largest)} if len(frame) else {},
        values={"exact": exact.max(), "paper": paper, "largest": largest, "paper_tau": PAPER_TAU},
        claims=tuple(claims),
    )


def draw(frame: pd.DataFrame, largest: float) -> Figure:
    """MSE against tau, both logarithmic, a panel for each flow; dotted the paper's largest."""
    flows = list(dict.fromkeys(frame["flow"]))
    with theme():
        fig = figure(3.0 * len(flows), 2.9)
        axes = fig.subplots(1, len(flows), squeeze=False, sharey=True)[0]
        handles: dict[str, object] = {}
        for ax, flow in zip(axes, flows, strict=True):
            lines_against_tau(ax, frame[frame["flow"] == flow], "reconstruction_mse", handles)
            handles["the paper's largest, SeJD at its tau"] = ax.axhline(largest, color=INK, lw=1, ls=":")
            ax.set_yscale("log")
            ax.set(title=flow, xlabel="tau")
            finish(ax)
        axes[0].set_ylabel("MSE (image units)")
        legend_below(fig, handles)
    return fig
