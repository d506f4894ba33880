"""The paper's break conditions, counted over every whole decode of the studies that were read."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.load import BASELINE, PAPER_TAU, Runs
from analysis.studies.base import Finding, Findings
from harness.breaks import CONDITIONS, MAX_FID_INCREASE, break_conditions, warnings

_HELD = {
    "iterations": "no layer takes more than L iterations",
    "fid": f"FID is nowhere more than {MAX_FID_INCREASE:.0%} above sequential's",
    "residuals": "no residual grows from one iteration to the next",
}


def findings(runs: Runs) -> Findings:
    """Which cells broke which condition."""
    cells = runs.cells[runs.cells["decoder"] != BASELINE]
    found = break_conditions(runs.cells, runs.tables["layers"], runs.tables["quality"])
    named = found.merge(cells[["cell_id", "flow", "batch_size", "series", "tau"]], on="cell_id")
    columns = ["flow", "batch_size", "series", "tau", "condition", "layer", "value", "limit"]
    measured = {
        "fid": set(runs.tables["quality"].dropna(subset=["fid"])["cell_id"]),
        "iterations": set(runs.tables["layers"]["cell_id"]),
        "residuals": set(runs.tables["layers"]["cell_id"]),
    }
    counts = []
    for (flow, tau), group in cells.groupby(["flow", "tau"]):
        for condition in CONDITIONS:
            ids = set(group["cell_id"]) & measured[condition]
            broken = ids & set(found.loc[found["condition"] == condition, "cell_id"])
            counts.append({"flow": flow, "tau": tau, "condition": condition, "cells": len(ids), "broken": len(broken)})
    frame = pd.DataFrame(counts, columns=["flow", "tau", "condition", "cells", "broken"])
    sentences = [
        {"flow": flow, "batch_size": batch, "sentence": sentence}
        for (flow, batch), group in cells.groupby(["flow", "batch_size"], sort=False)
        for sentence in warnings(found[found["cell_id"].isin(group["cell_id"])], group)
    ]
    return Findings(
        tables={"breaks": named[columns], "counts": frame},
        values={"warnings": sentences, "paper_tau": PAPER_TAU, "limit": MAX_FID_INCREASE},
        claims=tuple(_claims(frame)),
    )


def _claims(counts: pd.DataFrame) -> Iterator[Finding]:
    for flow, rows in counts.groupby("flow", sort=False):
        for condition in CONDITIONS:
            one = rows[rows["condition"] == condition]
            meant = one[one["tau"] <= PAPER_TAU]
            above = one[one["tau"] > PAPER_TAU]
            told = f"broken in {meant['broken'].sum()} of {meant['cells'].sum()} cells up to tau = {PAPER_TAU:g}"
            if above["cells"].sum():
                told += f", above it in {above['broken'].sum()} of {above['cells'].sum()}"
            yield Finding(
                claim=f"break-{condition}",
                flow=str(flow),
                measured=told,
                agrees=bool(meant["broken"].sum() == 0) if meant["cells"].sum() else None,
                criterion=f"up to tau = {PAPER_TAU:g} {_HELD[condition]}",
            )
