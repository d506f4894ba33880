"""Figures of the study: orders of convergence, and how far an error may be above its residual."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import guesses
from analysis.figures.style import INK, layer_lines, palette, panels


def draw_orders(orders: pd.DataFrame) -> Figure:
    """A panel per flow: the fitted order of each layer from each guess, with its interval."""
    flows = orders["flow"].unique()
    names = guesses.ordered(orders["initial"])
    colors = palette(len(names))
    with panels(max(5.6, 3.1 * len(flows) + 0.4), 3.2, len(flows), share_y=True) as (fig, axes, handles):
        for ax, flow in zip(axes, flows, strict=True):
            for place, name in enumerate(names):
                rows = orders[(orders["flow"] == flow) & (orders["initial"] == name)]
                bars = ax.errorbar(
                    rows["layer"] + 0.14 * (place - (len(names) - 1) / 2), rows["order"],
                    yerr=np.nan_to_num(rows["order_high"] - rows["order"]),
                    fmt=guesses.MARKERS[place % len(guesses.MARKERS)], color=colors[place], ms=4, elinewidth=1,
                )  # fmt: skip
                handles.setdefault(guesses.NAMES.get(name, name), bars)
            ax.axhline(1, color=INK, lw=0.8, alpha=0.5)
            ax.set(title=flow, xlabel="layer", xticks=sorted(orders["layer"].unique()))
        axes[0].set_ylabel("order of convergence")
    return fig


def draw_bounds(bounds: pd.DataFrame) -> Figure:
    """A panel per flow: error over residual against iteration, a line per layer, from zeros."""
    flows = bounds["flow"].unique()
    styles = layer_lines(sorted(bounds["layer"].unique()))
    with panels(max(5.6, 3.1 * len(flows) + 0.4), 3.2, len(flows), share_y=True) as (fig, axes, handles):
        for ax, flow in zip(axes, flows, strict=True):
            for layer, rows in bounds[bounds["flow"] == flow].groupby("layer"):
                (handles[f"layer {layer}"],) = ax.plot(rows["iteration"], rows["median"], **styles[layer], ms=3.5)
                band, color = (rows["median"], rows["largest"]), styles[layer]["color"]
                ax.fill_between(rows["iteration"], *band, color=color, alpha=0.1, lw=0)
            ax.axhline(1, color=INK, lw=0.8, alpha=0.5)
            ax.set(title=flow, xlabel="iteration", xscale="log", yscale="log")
        axes[0].set_ylabel("error / residual (max norms)")
    return fig
