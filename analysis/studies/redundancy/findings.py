"""What the nearest predecessors are worth in each reading of Eq. 6, against Figures 1, 2 and A1 of arXiv 2505.24791."""

from __future__ import annotations

import pandas as pd

from analysis.figures.plot import Omitted
from analysis.figures.redundancy import READINGS, data, draw, draw_strips, strips
from analysis.load import Runs, highest, lowest
from analysis.studies.base import Finding, Findings
from analysis.text import quantity

PAPER_O = (1, 2, 5)
"""What the paper leaves out."""
SHOWN_O = (*PAPER_O, 16)
FAR = 2.0
"""Layer 1 turns "far more" than another where its 1 - cosine is at least so many times the other's."""


def findings(runs: Runs) -> Findings:
    """How far outputs turn by layer, reading and o, what leaks, and what becomes of the images."""
    frame = data(runs)
    turns, images = _turns(frame), _images(frame)
    fits, leaks = _fits(turns, images), _leaks(frame)
    flows = frame["flow"].unique().tolist()
    figures = {f"outputs-{flow}": draw(frame[frame["flow"] == flow]) for flow in flows}
    try:
        found = strips(runs)
        figures |= {f"images-{flow}": draw_strips(rows) for flow, rows in found.groupby("flow")}
    except Omitted:
        pass
    claims = [claim for flow in flows for claim in _claims(flow, frame, turns, images)]
    return Findings(
        tables={"outputs": frame, "turns": turns, "images": images, "leaks": leaks, "fits": fits},
        figures=figures,
        values={
            "flows": flows,
            "figures": list(figures),
            "readings": READINGS,
            "first_layer": _where(fits, "first_layer"),
            "images": _where(fits, "images"),
            "both": _both(fits),
            "nearest": leaks.loc[leaks["reading"] == "attention", "median_o1"],
        },
        claims=tuple(claims),
    )


def _turns(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    alone = frame[(frame["scope"] == "layer") & frame["o"].isin(SHOWN_O)]
    for key, group in alone.groupby(["flow", "reading", "o"]):
        first = group[group["layer"] == 1].iloc[0]
        others = group[group["layer"] > 1]
        most = lowest(others, "cosine")
        turns = 1 - first["cosine"], 1 - most["cosine"]
        distances = first["l2_relative"], others["l2_relative"].max()
        rows.append((*key, *turns, int(most["layer"]), turns[0] / turns[1], *distances))
    columns = ["turn_layer_1", "turn_others", "layer", "times", "l2_layer_1", "l2_others"]
    return pd.DataFrame(rows, columns=["flow", "reading", "o", *columns])


def _images(frame: pd.DataFrame) -> pd.DataFrame:
    drawn = frame[(frame["scope"] == "all") & (frame["layer"] == frame.groupby("flow")["layer"].transform("max"))]
    exact = drawn[drawn["o"] == 0].groupby("flow")["fid"].first()
    drawn = drawn.assign(fid_exact=drawn["flow"].map(exact))
    keep = ["flow", "reading", "o", "cosine", "l2_relative", "fid", "fid_exact", "fid_features", "num_samples"]
    return drawn[keep].reset_index(drop=True)


def _leaks(frame: pd.DataFrame) -> pd.DataFrame:
    some = frame[(frame["scope"] == "layer") & (frame["o"] > 0)].dropna(subset=["leak"])
    grouped = some.groupby(["flow", "reading"])["leak"]
    nearest = some[some["o"] == 1].groupby(["flow", "reading"])["leak"].median()
    return pd.DataFrame({"least": grouped.min(), "largest": grouped.max(), "median_o1": nearest}).reset_index()


def _fits(turns: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Per flow and reading, at every o of the paper: whether it gives what its figures show; no FID, no `images`."""
    rows = []
    for (flow, reading), group in turns[turns["o"].isin(PAPER_O)].groupby(["flow", "reading"]):
        row = {"flow": flow, "reading": reading, "times_least": group["times"].min()}
        row |= {"times_largest": group["times"].max()}
        row["first_layer"] = "yes" if (group["times"] >= FAR).all() else "no"
        drawn = images[images["flow"] == flow].dropna(subset=["fid"])
        paper = drawn[(drawn["reading"] == reading) & drawn["o"].isin(PAPER_O)]
        if len(paper):
            row |= {"fid_exact": drawn["fid_exact"].iloc[0], "fid_most": paper["fid"].max()}
            row["images"] = "yes" if (paper["fid"] < _middle(drawn)).all() else "no"
        rows.append(row)
    columns = ["flow", "reading", "times_least", "times_largest", "first_layer", "fid_exact", "fid_most", "images"]
    return pd.DataFrame(rows, columns=columns)


def _where(fits: pd.DataFrame, figure: str) -> dict[str, dict[str, list[str]]]:
    if fits[figure].isna().all():
        return {}
    return {
        str(reading): {answer: list(rows.loc[rows[figure] == answer, "flow"]) for answer in ("yes", "no")}
        for reading, rows in fits.groupby("reading")
    }


def _both(fits: pd.DataFrame) -> dict[str, list[str]]:
    if fits["images"].isna().all():
        return {}
    seen = fits[(fits["first_layer"] == "yes") & (fits["images"] == "yes")]
    found = {str(reading): list(seen.loc[seen["reading"] == reading, "flow"]) for reading in fits["reading"].unique()}
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _claims(flow: str, frame: pd.DataFrame, turns: pd.DataFrame, images: pd.DataFrame) -> list[Finding]:
    own = turns[(turns["flow"] == flow) & turns["o"].isin(PAPER_O)]
    times = [
        f"{quantity(rows['times'].min())} to {quantity(rows['times'].max())} ({READINGS[str(reading)]})"
        for reading, rows in own.groupby("reading")
    ]
    masked = own[own["reading"] == "attention"]
    claims = [
        Finding(
            "redundancy-first-layer",
            flow,
            "with o = 1, 2 and 5 left out, the output of layer 1 turns farther than that of any other layer by a "
            f"factor of {', '.join(times)}",
            bool((masked["times"] >= FAR).all()) if len(masked) else None,
            f"1 − cosine of layer 1 is at least {FAR:g} times that of every other layer at each o, masked in "
            "attention as the paper says it does; where the dependence is truly removed it need not be",
        )
    ]
    drawn = images[images["flow"] == flow].dropna(subset=["fid"])
    if len(drawn):
        worst = highest(drawn, "fid")
        paper = drawn[(drawn["reading"] == "attention") & drawn["o"].isin(PAPER_O)]
        words = ", ".join(f"{quantity(fid)} at o = {o}" for o, fid in zip(paper["o"], paper["fid"], strict=True))
        claims.append(
            Finding(
                "redundancy-images",
                flow,
                f"masked in attention in every layer, FID rises from {quantity(drawn['fid_exact'].iloc[0])} to {words} "
                f"({int(drawn['num_samples'].iloc[0])} samples); the worst of all readings and o is "
                f"{quantity(worst['fid'])} ({READINGS[worst['reading']]}, o = {worst['o']})",
                bool((paper["fid"] < _middle(drawn)).all()),
                "at each of these o FID is nearer to that of unrestricted samples than to the worst that any "
                "reading and o makes of them; the images are shown for the reader's own eye",
            )
        )
    return claims


def _middle(drawn: pd.DataFrame) -> float:
    return float((drawn["fid_exact"].iloc[0] + drawn["fid"].max()) / 2)
