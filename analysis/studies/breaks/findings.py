"""The paper's break conditions, counted over every whole decode of the studies that were read."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.load import BASELINE, PAPER_TAU, Runs, load
from analysis.quality import CONDITIONS, MAX_FID_INCREASE, UNDECIDED, break_conditions, fid_rises, warnings, within
from analysis.studies.base import Finding, Findings, Verdict

_HELD = {
    "iterations": "no layer takes more than L iterations",
    "fid": f"FID is nowhere more than {MAX_FID_INCREASE:.0%} above sequential's, with 95 % confidence either way",
    "residuals": "no residual grows from one iteration to the next",
}


def findings(runs: Runs) -> Findings:
    """Which cells broke which condition, run by run: two runs of one cell may rest on other numbers of samples."""
    parts = [_of_run(load([run.path]), run.path.name) for run in runs.runs]
    found, counts, sentences = (pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))
    counts = counts.groupby(["flow", "tau", "condition"], sort=False, as_index=False)[
        ["cells", "broken", "undecided"]
    ].sum()
    return Findings(
        tables={"breaks": found, "counts": counts},
        values={
            "table": _wide(counts),
            "warnings": sentences.to_dict("records"),
            "paper_tau": PAPER_TAU,
            "limit": MAX_FID_INCREASE,
        },
        claims=tuple(_claims(counts)),
    )


def _of_run(runs: Runs, name: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    cells = runs.cells[runs.cells["decoder"] != BASELINE]
    layers, quality = runs.tables["layers"], runs.tables["quality"]
    found = break_conditions(runs.cells, layers, quality)
    measured_fid = quality.merge(runs.cells[["cell_id", "group_id", "decoder"]], on="cell_id").dropna(subset=["fid"])
    rises = fid_rises(measured_fid)
    ends = zip(measured_fid["cell_id"], rises["fid_rise_low"], rises["fid_rise_high"], strict=True)
    open_ = {cell for cell, low, high in ends if within(low, high, MAX_FID_INCREASE) is None}
    named = found.merge(cells[["cell_id", "flow", "batch_size", "series", "tau"]], on="cell_id").assign(run=name)
    traced = set(layers["cell_id"])
    measured = {"iterations": traced, "fid": set(measured_fid["cell_id"]), "residuals": traced}
    counts = []
    for (flow, tau), group in cells.groupby(["flow", "tau"]):
        for condition in CONDITIONS:
            ids = set(group["cell_id"]) & measured[condition]
            broken = ids & set(found.loc[found["condition"] == condition, "cell_id"])
            undecided = ids & open_ if condition == "fid" else set()
            counts.append((flow, tau, condition, len(ids), len(broken), len(undecided)))
    sentences = [
        (name, flow, batch, sentence)
        for (flow, batch), group in cells.groupby(["flow", "batch_size"], sort=False)
        for sentence in warnings(found[found["cell_id"].isin(group["cell_id"])], group)
    ]
    return (
        named[["run", "flow", "batch_size", "series", "tau", "condition", "layer", "value", "limit"]],
        pd.DataFrame(counts, columns=["flow", "tau", "condition", "cells", "broken", "undecided"]),
        pd.DataFrame(sentences, columns=["run", "flow", "batch_size", "sentence"]),
    )


def _wide(counts: pd.DataFrame) -> pd.DataFrame:
    words = counts["broken"].astype(str) + " of " + counts["cells"].astype(str)
    words += counts["undecided"].map(lambda count: f", {count} undecided" if count else "")
    wide = counts.assign(words=words).pivot(index=["flow", "tau"], columns="condition", values="words")
    return wide.reset_index()


def _claims(counts: pd.DataFrame) -> Iterator[Finding]:
    for (flow, condition), rows in counts.groupby(["flow", "condition"], sort=False):
        meant, above = rows[rows["tau"] <= PAPER_TAU], rows[rows["tau"] > PAPER_TAU]
        broken, of, open_ = (meant[name].sum() for name in ("broken", "cells", "undecided"))
        words = f"broken in {broken} of {of} cells up to tau = {PAPER_TAU:g}" + (
            f", {open_} undecided" if open_ else ""
        )
        if above["cells"].sum():
            words += f", above it in {above['broken'].sum()} of {above['cells'].sum()}"
        held: Verdict = False if broken else UNDECIDED if open_ else True
        criterion = f"up to tau = {PAPER_TAU:g} {_HELD[str(condition)]}"
        yield Finding(f"break-{condition}", str(flow), words, held if of else None, criterion)
