"""How many iterations each layer takes, and what that costs: the hardest layers stand out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from analysis.figures.plot import Plot, require
from analysis.figures.style import INK, PAPER, figure, finish, sequential_map, styles, theme
from analysis.load import Runs, highest, one_batch, ranked, title_of
from analysis.text import listing, quantity


def data(runs: Runs) -> pd.DataFrame:
    """One row per decoder, tau and layer, median over seeds, at one batch size per flow."""
    layers = require(runs.joined("layers"), "no cell has rows in `layers`")
    layers = layers.assign(title=layers.apply(title_of, axis=1))
    by = ["flow", "batch_size", "decoder", "series", "tau", "title", "num_tokens", "num_layers", "layer"]
    grouped = one_batch(layers).groupby(by, dropna=False)
    frame = grouped.agg(
        iterations=("iterations", "median"),
        token_evaluations=("token_evaluations", "median"),
        depth=("depth", "median"),
        mode=("mode", lambda modes: "/".join(sorted(set(modes)))),
        converged=("converged", "all"),
        redecoded=("flags", lambda flags: flags.fillna("").str.contains("redecoded").any()),
    )
    frame = frame.reset_index()
    frame["fpe"] = frame["token_evaluations"] / (frame["num_layers"] * (frame["num_tokens"] - 1).clip(lower=1))
    return ranked(frame, "layer")


def draw(frame: pd.DataFrame) -> Figure:
    """Heat map of iterations; beside it forward-pass equivalents and depth, summed over layers."""
    titles = list(dict.fromkeys(frame["title"]))
    grid = frame.pivot(index="title", columns="layer", values="iterations").loc[titles]
    totals = frame.groupby("title").agg(fpe=("fpe", "sum"), depth=("depth", "sum"))
    totals = totals.loc[titles]
    looks = styles(frame, "title")
    colors = [looks[title].color for title in titles]
    with theme():
        fig = figure(4.2 + 0.62 * grid.shape[1] + 2.6, 1.1 + 0.27 * len(titles))
        heat, cost, depth = fig.subplots(1, 3, width_ratios=[0.62 * grid.shape[1] + 1.0, 1.3, 1.3])
        sequential = frame.pivot(index="title", columns="layer", values="mode").loc[titles] == "sequential"
        shared = {"ax": heat, "annot": True, "fmt": "g", "linewidths": 1.0, "linecolor": PAPER, "cbar": False}
        high = max(2.0, float(np.nanmax(grid.mask(sequential).fillna(0).to_numpy())))
        for hidden, cmap, norm, text in (
            (~sequential, ListedColormap(["#9aa0a666"]), None, {"color": INK, "alpha": 0.7}),
            (sequential, sequential_map(), LogNorm(1, high), {}),
        ):
            if not hidden.to_numpy().all():
                text = {"fontsize": 7.5, **text}
                seaborn.heatmap(grid, mask=hidden | grid.isna(), cmap=cmap, norm=norm, annot_kws=text, **shared)
        heat.grid(False)
        heat.set(title="iterations", xlabel="layer, in decoding order", ylabel="")
        heat.tick_params(axis="y", rotation=0, length=0)
        heat.tick_params(axis="x", length=0)
        places = np.arange(len(titles)) + 0.5
        for ax, column, name in ((cost, "fpe", "FPE"), (depth, "depth", "depth")):
            bars = ax.barh(places, totals[column], height=0.66, color=colors)
            ax.bar_label(bars, [quantity(value) for value in totals[column]], padding=2, fontsize=7)
            ax.set(title=name, ylim=(len(titles), 0), yticks=[], xticks=[], xlim=(0, totals[column].max() * 1.35 or 1))
            ax.grid(False)
            finish(ax)
            ax.spines["bottom"].set_visible(False)
    return fig


def finding(frame: pd.DataFrame) -> str:
    """Which layer iterates most, how the first compares with the others, and what never converged."""
    batch = frame["batch_size"].iloc[0]
    iterated = frame[~frame["mode"].isin(["sequential"])]
    if iterated.empty:
        steps = quantity(frame["iterations"].max())
        return f"At batch {batch} every layer was decoded sequentially, {steps} steps each."
    parts = []
    first, later = iterated[iterated["layer"] == 1], iterated[iterated["layer"] > 1]
    if len(first) and len(later):
        parts.append(
            f"where layer 1 is iterated it takes {quantity(first['iterations'].median())} iterations in the median "
            f"against {quantity(later['iterations'].median())} in the later layers"
        )
    hardest = highest(iterated, "iterations")
    parts.append(
        f"the most is {quantity(hardest['iterations'])} in layer {hardest['layer']} by {hardest['title']}, of "
        f"{hardest['num_tokens'] - 1} at which every method is exact"
    )
    totals = frame[frame["title"].isin(iterated["title"])].groupby("title")["fpe"].sum()
    parts.append(f"whole decodes cost {quantity(totals.min())} to {quantity(totals.max())} forward-pass equivalents")
    sentence = f"At batch {batch}: {'; '.join(parts)}."
    for words, which in (
        ("Not converged", ~frame["converged"].astype(bool)),
        ("Decoded again sequentially", frame["redecoded"].astype(bool)),
    ):
        if which.any():
            sentence += f" {words} in some layer: {listing(list(frame.loc[which, 'title'].unique()))}."
    return sentence


READING = (
    "Layer 1 is the first one inverted, next to the prior. Sequential layers, on grey, count their L − 1 "
    "steps. FPE, forward-pass equivalents, are token evaluations over those of one forward pass; depth is the "
    "number of network calls that must follow each other. One batch size per flow, the one with most cells; "
    "the median over seeds."
)

PLOTS = [Plot("iterations-per-layer", "Iterations per layer", READING, data, draw, finding)]
