"""Snapshots of one training: what redundancy, iterations, deviation and speed-up are while a flow learns."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import decoder_style, layer_lines, panels
from analysis.load import PAPER_TAU, Runs
from analysis.studies.base import Finding, Findings
from analysis.studies.cells import deterministic, layerwise, rounds, speed, with_interval
from analysis.text import listing, quantity

READING, LEFT_OUT = "input", 5
"""The reading in which the dependence is truly removed, and the paper's largest o."""


def findings(runs: Runs) -> Findings:
    """Everything against the share of the training that a snapshot has seen."""
    cells, layers, times = (_ordered(frame) for frame in (deterministic(runs), layerwise(runs), speed(runs)))
    redundancy = _redundancy(runs)
    summary = _summary(cells, layers, redundancy)
    return Findings(
        tables={"cells": cells, "iterations": layers, "redundancy": redundancy, "summary": summary},
        timed={"speed": times, "rounds": rounds(runs)},
        figures={"training": draw(layers, redundancy, cells)} if len(redundancy) else {},
        values={"paper_tau": PAPER_TAU, "dataset": cells["dataset"].iloc[0], "o": LEFT_OUT},
        claims=tuple(_claims(summary, times)),
    )


def trained(checkpoint: str) -> float:
    """The share of the training that a snapshot has seen, told by its name.

    >>> trained("cifar10-jpeg-25pct.safetensors")
    0.25
    """
    found = re.search(r"-(\d+)pct\.", checkpoint)
    return int(found[1]) / 100 if found else 1.0


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.assign(trained=frame["checkpoint"].map(trained))
    order = [name for name in ("trained", "decoder", "tau", "layer") if name in frame]
    return frame.sort_values(order, kind="stable").reset_index(drop=True)


def _redundancy(runs: Runs) -> pd.DataFrame:
    columns = ["checkpoint", "trained", "reading", "layer", "o", "cosine", "cosine_p10", "cosine_p90"]
    columns += ["l2_relative", "num_samples"]
    rows = runs.table("redundancy")
    if rows.empty:
        return pd.DataFrame(columns=columns)
    frame = rows[rows["scope"] == "layer"].assign(trained=rows["checkpoint"].map(trained))[columns]
    return frame.sort_values(["reading", "trained", "layer", "o"], ignore_index=True)


def _turned(redundancy: pd.DataFrame) -> pd.DataFrame:
    return redundancy[(redundancy["reading"] == READING) & (redundancy["o"] == LEFT_OUT)]


def _summary(cells: pd.DataFrame, layers: pd.DataFrame, redundancy: pd.DataFrame) -> pd.DataFrame:
    turned, rows = _turned(redundancy), []
    cells = cells[cells["tau"].isna() | (cells["tau"] == PAPER_TAU)]
    for (share, checkpoint), part in cells.groupby(["trained", "checkpoint"]):
        named = part.drop_duplicates("decoder", keep="last").set_index("decoder")
        own = layers[(layers["checkpoint"] == checkpoint) & (layers["tau"] == PAPER_TAU) & (layers["decoder"] == "ujd")]
        angle = turned[turned["checkpoint"] == checkpoint]
        rows.append(
            {
                "checkpoint": checkpoint,
                "trained": share,
                "fid": named.loc["sequential", "fid"],
                "iterations_layer_1": own.loc[own["layer"] == 1, "iterations"].max(),
                "iterations_later": own.loc[own["layer"] > 1, "iterations"].mean(),
                "fpe_ujd": named.loc["ujd", "fpe"],
                "fpe_sejd": named.loc["sejd", "fpe"],
                "deviation_ujd": named.loc["ujd", "deviation_rmse"],
                "deviation_sejd": named.loc["sejd", "deviation_rmse"],
                "turn_layer_1": 1 - angle.loc[angle["layer"] == 1, "cosine"].median(),
                "turn_later": 1 - angle.loc[angle["layer"] > 1, "cosine"].mean(),
            }
        )
    return pd.DataFrame(rows)


def _claims(summary: pd.DataFrame, times: pd.DataFrame) -> list[Finding]:
    first, last = (row for row in summary.iloc[[0, -1]].to_dict("records"))
    flow = f"{last['checkpoint']} at {listing([f'{share:.0%}' for share in summary['trained']])} of its training"
    answered = bool(summary.drop(columns="fid").notna().all(axis=None))
    measured = (
        f"from the first snapshot to the end UJD's first layer goes from {first['iterations_layer_1']:g} to "
        f"{last['iterations_layer_1']:g} iterations at tau = {PAPER_TAU:g}, the others from "
        f"{quantity(first['iterations_later'])} to {quantity(last['iterations_later'])} in the mean; without the "
        f"{LEFT_OUT} nearest predecessors (removed from the input) 1 - cosine similarity goes from "
        f"{quantity(first['turn_layer_1'])} to {quantity(last['turn_layer_1'])} in the first layer and from "
        f"{quantity(first['turn_later'])} to {quantity(last['turn_later'])} in the others; SeJD's deviation from "
        f"{quantity(first['deviation_sejd'])} to {quantity(last['deviation_sejd'])}"
    )
    criterion = "redundancy, iterations and deviation were measured at every snapshot"
    found = [Finding("open-partial", flow, measured, answered, criterion)]
    ratios = times[(times["decoder"] == "sejd") & (times["tau"] == PAPER_TAU)]
    if not ratios.empty:
        fast = ", ".join(f"{row['trained']:.0%}: {with_interval(row)}" for row in ratios.to_dict("records"))
        criterion = "the speed-up was measured at every snapshot in five rounds or more"
        measured = f"SeJD's speed-up by share of the training: {fast}"
        found.append(Finding("open-partial", flow, measured, bool(ratios["low"].notna().all()), criterion, timed=True))
    return found


def draw(layers: pd.DataFrame, redundancy: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Redundancy and iterations of every layer, and deviation, against the share of the training."""
    shares = sorted(layers["trained"].unique())
    nearest = _turned(redundancy).sort_values("trained")
    solved = layers[(layers["decoder"] == "ujd") & (layers["tau"] == layers["tau"].min())]
    with panels(9.6, 3.3, 3) as (fig, axes, handles):
        turned, taken, strayed = axes
        for layer, style in layer_lines(range(1, int(layers["layer"].max()) + 1)).items():
            rows = nearest[nearest["layer"] == layer]
            (handles[f"layer {layer}"],) = turned.plot(_places(rows, shares), 1 - rows["cosine"], **style)
            rows = solved[solved["layer"] == layer]
            taken.plot(_places(rows, shares), rows["iterations"], **style)
        for (series, tau), rows in cells[cells["tau"] > 0].groupby(["series", "tau"], sort=False):
            (handles[f"{series}, tau = {tau:g}"],) = strayed.plot(
                _places(rows, shares), rows["deviation_rmse"], **decoder_style(rows["decoder"].iloc[0]).line,
                fillstyle="full" if tau == PAPER_TAU else "none",
            )  # fmt: skip
        turned.set(title=f"1 - cosine similarity, o = {LEFT_OUT}", yscale="log")
        taken.set_title(f"UJD's iterations, tau = {layers['tau'].min():g}")
        strayed.set_title("deviation (RMSE, image units)")
        for ax in (taken, strayed):
            ax.set_ylim(bottom=0)
        for ax in axes:
            ax.set_xticks(np.arange(len(shares)), [f"{share:.0%}" for share in shares])
            ax.set_xlabel("share of the training")
    return fig


def _places(rows: pd.DataFrame, shares: list[float]) -> list[int]:
    return [shares.index(share) for share in rows["trained"]]
