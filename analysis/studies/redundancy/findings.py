"""What the nearest predecessors are worth in each reading of Eq. 6, against Figures 1, 2 and A1 of arXiv 2505.24791."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

from analysis.figures.plot import Omitted
from analysis.figures.redundancy import READINGS, data, draw, draw_strips, strips
from analysis.load import Runs, lowest
from analysis.quality import MIN_SAMPLES, UNDECIDED
from analysis.studies.base import Finding, Findings, Verdict
from analysis.text import listing, quantity

PAPER_O = (1, 2, 5)
"""What the paper leaves out."""
SHOWN_O = (*PAPER_O, 16)
MILD = {"noise": 0.2, "blur": 0.75}
"""Changes of real images, in image units and pixels, that leave plain what is on them."""
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
            allowed = drawn["fid_exact"].iloc[0] + mild(drawn["fid_features"].iloc[0])
            row |= {"fid_exact": drawn["fid_exact"].iloc[0], "fid_most": paper["fid"].max(), "fid_allowed": allowed}
            if pd.notna(allowed):
                row["images"] = "yes" if (paper["fid"] <= allowed).all() else "no"
        rows.append(row)
    columns = ["flow", "reading", "times_least", "times_largest", "first_layer", "fid_exact", "fid_most"]
    columns += ["fid_allowed", "images"]
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
            f"with o = {listing([str(o) for o in sorted(own['o'].unique())])} left out, the output of layer 1 turns "
            f"farther than that of any other layer by a factor of {', '.join(times)}",
            bool((masked["times"] >= FAR).all()) if len(masked) else None,
            f"1 − cosine of layer 1 is at least {FAR:g} times that of every other layer at each o, masked in "
            "attention as the paper says it does; where the dependence is truly removed it need not be",
        )
    ]
    drawn = images[images["flow"] == flow].dropna(subset=["fid"])
    if len(drawn):
        allowed, count = mild(drawn["fid_features"].iloc[0]), int(drawn["num_samples"].min())
        paper = drawn[(drawn["reading"] == "attention") & drawn["o"].isin(PAPER_O)]
        rises = dict(zip(paper["o"], paper["fid"] - paper["fid_exact"], strict=True))
        words = ", ".join(
            f"{rise:+.3g} at o = {o}" + (" (more)" if rise > allowed else "") for o, rise in rises.items()
        )
        verdict: Verdict = UNDECIDED if count < MIN_SAMPLES else all(rise <= allowed for rise in rises.values())
        claims.append(
            Finding(
                "redundancy-images",
                flow,
                f"masked in attention in every layer, FID, {quantity(drawn['fid_exact'].iloc[0])} unrestricted, moves "
                f"by {words}; mildly changed real images by {quantity(allowed)} ({count} samples"
                f"{', too few' if count < MIN_SAMPLES else ''})",
                None if pd.isna(allowed) else verdict,
                f"at each of these o FID rises by no more than that of real images does by noise of {MILD['noise']:g} "
                f"or a blur of {MILD['blur']:g} pixels, whichever is less, from {MIN_SAMPLES} samples or more",
            )
        )
    return claims


def mild(features: str) -> float:
    """What the less harmful of `MILD` adds to the FID of held-out real images, by the sanity table of the features.

    NaN for features that come without one.
    """
    table = files("harness") / "metrics" / "assets" / f"{features.partition('@')[0]}.csv"
    if not table.is_file():
        return float("nan")
    with table.open(encoding="utf-8") as file:
        fid = pd.read_csv(file).set_index(["change", "level"])["fid"]
    return min(float(fid[change, level] - fid[change, 0.0]) for change, level in MILD.items())
