"""What a layer's nearest predecessors are worth: its output with and without them (SeJD's Figures 1, 2 and A1)."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image

from analysis.figures.plot import Plot, require
from analysis.figures.style import add_legend, figure, finish, layer_lines, theme
from analysis.load import Runs, highest, lowest
from analysis.text import flow_titles, quantity

STRIPS = "redundancy"
"""Folder of a run for image strips, named ``CHECKPOINT_READING_oNN.png``."""
SHOWN = 6
"""Images of a strip that are drawn, of its `IN_STRIP`."""
IN_STRIP = 12

MEASURES = {"cosine": "cosine similarity", "l2": "L2 distance"}
READINGS = {
    "attention": "masked in attention",
    "attention-self": "masked but the query's own",
    "input": "truly removed",
}
"""The readings of `harness probe redundancy`, in the order drawn, in a few words."""
SCOPES = {"layer": "in this layer alone", "all": "in every layer"}


def data(runs: Runs) -> pd.DataFrame:
    """The probe's table; of a point that was measured several times, the row that rests on most samples."""
    rows = probed(runs, "redundancy", "redundancy")
    rows = require(rows.dropna(subset=list(MEASURES), how="all"), "the table `redundancy` holds no number")
    key = ["flow", "scope", "reading", "layer", "o"]
    rows = rows.sort_values("num_samples", kind="stable").drop_duplicates(key, keep="last")
    keep = [*key, "cosine", "cosine_p10", "cosine_p90", "l2", "l2_p10", "l2_p90"]
    keep += ["l2_relative", "leak", "fid", "fid_features", "num_samples"]
    return rows[keep].sort_values(key).reset_index(drop=True)


def probed(runs: Runs, table: str, probe: str, where: str = "") -> pd.DataFrame:
    """A probe's rows as `named`; `Omitted` where there are none."""
    reason = f"the runs hold no table `{table}`; `harness probe {probe}` writes it{where}"
    return named(require(runs.table(table), reason))


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """A probe's rows with `flow`: its name or dataset, or the checkpoint where several share that."""
    names = flow_titles(rows)
    alone = rows["checkpoint"].groupby(names).transform("nunique") < 2
    return rows.assign(flow=names.where(alone, rows["checkpoint"]))


def draw(frame: pd.DataFrame) -> Figure:
    """A row per scope and measure, a column per reading, a line per layer, layer 1 darkest."""
    scopes = [scope for scope in SCOPES if scope in set(frame["scope"])]
    readings = [reading for reading in READINGS if reading in set(frame["reading"])]
    layers = sorted(frame["layer"].unique())
    styles = layer_lines(layers)
    rows = [(scope, measure) for scope in scopes for measure in MEASURES]
    with theme():
        fig = figure(3.2 * len(readings) + 0.4, 2.1 * len(rows) + 0.6)
        axes = fig.subplots(len(rows), len(readings), squeeze=False, sharex=True, sharey="row")
        handles: dict[str, object] = {}
        for place, (scope, measure) in enumerate(rows):
            for ax, reading in zip(axes[place], readings, strict=True):
                panel = frame[(frame["scope"] == scope) & (frame["reading"] == reading)]
                for layer, line in panel.groupby("layer"):
                    (handles[f"layer {layer}"],) = ax.plot(line["o"], line[measure], **styles[layer], ms=4)
                    band = line[f"{measure}_p10"], line[f"{measure}_p90"]
                    ax.fill_between(line["o"], *band, color=styles[layer]["color"], alpha=0.1, lw=0)
                _scale(ax, sorted(frame["o"].unique()))
                if place % len(MEASURES) == 0:
                    ax.set_title(f"{READINGS[reading]},\n{SCOPES[scope]}")
                finish(ax)
            axes[place][0].set_ylabel(MEASURES[measure])
        for ax in axes[-1]:
            ax.set_xlabel("predecessors left out, o")
        add_legend(fig, handles)
    return fig


def _scale(ax: Axes, counts: list[int]) -> None:
    """Linear up to 5, the paper's largest o, logarithmic beyond."""
    ax.set_xscale("symlog", base=2, linthresh=5)
    shown = [count for count in counts if count not in (3, 4)]  # too near to each other for their numbers
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def finding(frame: pd.DataFrame) -> str:
    """Which layer's output turns most and which least, at the largest o."""
    chosen = frame[frame["scope"] == "layer"] if (frame["scope"] == "layer").any() else frame
    chosen = chosen[chosen["reading"] == chosen["reading"].iloc[0]].dropna(subset=["cosine"])
    if chosen.empty:
        return "No cosine similarity was measured."
    top = chosen[chosen["o"] == chosen["o"].max()]
    turned, kept = lowest(top, "cosine"), highest(top, "cosine")
    words = (
        f"With the {int(turned['o'])} nearest predecessors left out ({turned['reading']}), the output of layer "
        f"{turned['layer']} turns most (cosine similarity {quantity(turned['cosine'])})"
    )
    if turned["layer"] != kept["layer"]:
        words += f" and that of layer {kept['layer']} least ({quantity(kept['cosine'])})"
    first = top[top["layer"] == 1]
    others = top[top["layer"] > 1]
    if len(first) and len(others):
        more = first["cosine"].iloc[0] < others["cosine"].min()
        words += "; layer 1 " + ("turns" if more else "does not turn") + " more than every other, "
        words += "as the paper reports" if more else "unlike in the paper"
    leaks = frame[frame["o"] > 0].groupby("reading")["leak"].max().dropna()
    if len(leaks):
        shares = ", ".join(f"{quantity(100 * share)} % ({reading})" for reading, share in leaks.items())
        words += f". Of the influence of what is left out there remains at most {shares}"
    images = frame.dropna(subset=["fid"])
    if len(images):
        worst = highest(images, "fid")
        where = f"With o = {int(worst['o'])} left out in every layer ({worst['reading']})"
        words += f". {where} FID is {quantity(worst['fid'])}"
    return words + "."


_STRIP = re.compile(r"(?P<flow>.+)_(?P<reading>[a-z-]+)_o(?P<o>\d+)")


def strips(runs: Runs) -> pd.DataFrame:
    """One row per image strip found in the runs; of equal names the last run's."""
    found = [
        {**match.groupdict(), "o": int(match["o"]), "_path": str(file)}
        for run in runs.runs
        for file in sorted((run.path / STRIPS).glob("*.png"))
        if (match := _STRIP.fullmatch(file.stem))
    ]
    frame = pd.DataFrame(found, columns=["flow", "reading", "o", "_path"])
    frame = frame.drop_duplicates(["flow", "reading", "o"], keep="last").sort_values(["flow", "reading", "o"])
    return require(frame.reset_index(drop=True), f"the runs hold no image strips (`{STRIPS}/*.png`)")


def draw_strips(frame: pd.DataFrame) -> Figure:
    """The first images of every strip: a column per reading, a row per o."""
    readings = [reading for reading in READINGS if reading in set(frame["reading"])]
    counts = sorted(frame["o"].unique())
    paths = frame.set_index(["reading", "o"])["_path"].to_dict()
    width = 3.4
    with theme():
        fig = figure(width * len(readings) + 0.5, (width / SHOWN + 0.08) * len(counts) + 0.3, scaled=True)
        axes = fig.subplots(len(counts), len(readings), squeeze=False)
        for row, o in zip(axes, counts, strict=True):
            for ax, reading in zip(row, readings, strict=True):
                if (path := paths.get((reading, o))) is not None:
                    with Image.open(path) as file:
                        pixels = np.asarray(file.convert("RGB"))
                    ax.imshow(pixels[:, : pixels.shape[1] * SHOWN // IN_STRIP], interpolation="none")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            row[0].set_ylabel(f"o = {o}", rotation=0, ha="right", va="center")
        for ax, reading in zip(axes[0], readings, strict=True):
            ax.set_title(READINGS[reading])
    return fig


def finding_strips(frame: pd.DataFrame) -> str:
    """How many there are."""
    return f"{len(frame)} strip{'s' if len(frame) > 1 else ''} of images from the same latents."


READING = (
    "Layer outputs with each token's o nearest predecessors left out, against the full ones: the median over "
    "samples, the band 10 to 90 %. A cosine similarity near 1 means that they were not needed. Masked in "
    "attention: no query sees their keys, but token l − 1 still enters through its own hidden state. Masked "
    "but the query's own: token l − 1 is seen, the o before it are not. Truly removed: zeros in their place. "
    "In this layer alone: from exact inputs and exact predecessors. In every layer: samples drawn so."
)
STRIPS_READING = "The same latents decoded with the o nearest predecessors of each token left out in every layer."
STRIPS_TITLE = "Images without the nearest predecessors"

PLOTS = [
    Plot("redundancy", "Redundancy of predecessors", READING, data, draw, finding),
    Plot("redundancy-strips", STRIPS_TITLE, STRIPS_READING, strips, draw_strips, finding_strips),
]
