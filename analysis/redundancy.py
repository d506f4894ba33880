"""What a layer's nearest predecessors are worth: its output with and without them (SeJD's Figures 1, 2 and A1)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from analysis.load import Runs
from analysis.plot import Plot, highest, lowest, quantity, require
from analysis.style import figure, finish, layer_colors, legend_below, theme

STRIPS = "redundancy"
"""Folder of a run whose PNG files are image strips, named for what was left out."""

MEASURES = {"cosine": "cosine similarity", "l2": "L2 distance"}
MARKERS = "osD^vPX*<>"


def data(runs: Runs) -> pd.DataFrame:
    """The table as the probe wrote it, `flow` naming the dataset, or its checkpoint where it has several."""
    rows = require(
        runs.tables["redundancy"], "the runs hold no table `redundancy`; `harness probe redundancy` writes it"
    )
    alone = rows.groupby("dataset")["checkpoint"].transform("nunique") < 2
    rows = rows.assign(flow=rows["dataset"].where(alone, rows["checkpoint"]))
    rows = require(rows.dropna(subset=list(MEASURES), how="all"), "the table `redundancy` holds no number")
    keep = ["flow", "scope", "reading", "layer", "o", "cosine", "cosine_p10", "cosine_p90", "l2", "l2_p10", "l2_p90"]
    keep += ["l2_relative", "fid", "fid_features", "num_samples"]
    return rows[keep].sort_values(["flow", "scope", "reading", "layer", "o"]).reset_index(drop=True)


def draw(frame: pd.DataFrame) -> Figure:
    """A row per scope and reading, a column per measure, a line per layer, layer 1 darkest."""
    kinds = list(frame[["scope", "reading"]].drop_duplicates().itertuples(index=False, name=None))
    layers = sorted(frame["layer"].unique())
    colors = dict(zip(layers, layer_colors(len(layers)), strict=True))
    with theme():
        fig = figure(8.4, 2.7 * len(kinds) + 0.6)
        axes = fig.subplots(len(kinds), 2, squeeze=False)
        handles: dict[str, object] = {}
        for row, kind in zip(axes, kinds, strict=True):
            scope, reading = kind
            panel = frame[(frame["scope"] == scope) & (frame["reading"] == reading)]
            for ax, (measure, label) in zip(row, MEASURES.items(), strict=True):
                for place, (layer, rows) in enumerate(panel.groupby("layer")):
                    (line,) = ax.plot(
                        rows["o"], rows[measure], color=colors[layer], marker=MARKERS[place % len(MARKERS)], ms=5
                    )
                    ax.fill_between(
                        rows["o"], rows[f"{measure}_p10"], rows[f"{measure}_p90"], color=colors[layer], alpha=0.15, lw=0
                    )
                    handles.setdefault(f"layer {layer}", line)
                where = "every layer" if scope == "all" else "this layer"
                ax.set(xlabel="predecessors left out, o", title=f"{label}: o left out in {where} ({reading})")
                ax.set_xticks(sorted(panel["o"].unique()))
                finish(ax)
        legend_below(fig, list(handles.values()), list(handles))
    return fig


def finding(frame: pd.DataFrame) -> str:
    """Which layer's output turns most and which least, at the largest o."""
    chosen = frame[frame["scope"] == "layer"] if (frame["scope"] == "layer").any() else frame
    chosen = chosen[chosen["reading"] == chosen["reading"].iloc[0]].dropna(subset=["cosine"])
    if chosen.empty:
        return "No cosine similarity was measured."
    top = chosen[chosen["o"] == chosen["o"].max()]
    turned, kept = lowest(top, "cosine"), highest(top, "cosine")
    told = (
        f"With the {int(turned['o'])} nearest predecessors left out ({turned['reading']}), the output of layer "
        f"{turned['layer']} turns most (cosine similarity {quantity(turned['cosine'])})"
    )
    if turned["layer"] != kept["layer"]:
        told += f" and that of layer {kept['layer']} least ({quantity(kept['cosine'])})"
    first = top[top["layer"] == 1]
    others = top[top["layer"] > 1]
    if len(first) and len(others):
        more = first["cosine"].iloc[0] < others["cosine"].min()
        told += (
            "; layer 1 turns more than every other, as the paper reports"
            if more
            else ("; layer 1 does not turn more than every other, unlike in the paper")
        )
    images = frame.dropna(subset=["fid"])
    if len(images):
        worst = highest(images, "fid")
        told += f". With o = {int(worst['o'])} left out in every layer FID is {quantity(worst['fid'])}"
    return told + "."


def strips(runs: Runs) -> pd.DataFrame:
    """One row per image strip found in the runs."""
    found = [
        {"strip": file.stem, "_path": str(file)}
        for run in runs.runs
        for file in sorted((run.path / STRIPS).glob("*.png"))
    ]
    return require(pd.DataFrame(found, columns=["strip", "_path"]), f"the runs hold no image strips (`{STRIPS}/*.png`)")


def draw_strips(frame: pd.DataFrame) -> Figure:
    """The strips under one another."""
    images: list[np.ndarray] = []
    for path in frame["_path"]:
        with Image.open(path) as file:
            images.append(np.asarray(file.convert("RGB")))
    width = 9.0
    heights = [width * image.shape[0] / image.shape[1] + 0.35 for image in images]
    with theme():
        fig = figure(width, min(sum(heights), 40.0))
        axes = fig.subplots(len(images), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, image, name in zip(axes, images, frame["strip"], strict=True):
            ax.imshow(image, interpolation="none")
            ax.set_title(name)
            ax.set_axis_off()
    return fig


PLOTS = [
    Plot(
        name="redundancy",
        title="Redundancy of predecessors",
        reading=(
            "Each layer is decoded with its o nearest predecessors masked out and compared with its full output: the "
            "median over samples, the band 10 to 90 %. A cosine similarity near 1 means that they were not needed."
        ),
        data=data,
        draw=draw,
        finding=finding,
    ),
    Plot(
        name="redundancy-strips",
        title="Images without the nearest predecessors",
        reading="The same latents decoded with o predecessors left out; the name of each strip says where.",
        data=strips,
        draw=draw_strips,
        finding=lambda frame: f"{len(frame)} strip{'s' if len(frame) > 1 else ''} of images from the same latents.",
        split=None,
    ),
]
