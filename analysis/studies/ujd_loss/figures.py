"""Figures of the study: iterations, predicted against measured speed-up, and where UJD turns slower."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import INK, decoder_style, figure, finish, legend_below, log_axis, shades, theme
from analysis.studies.ujd_loss.cost_model import NETWORK


def draw_iterations(random: pd.DataFrame, trained: pd.DataFrame) -> Figure:
    """Left: flows with random weights, mean iterations against L, a line per gain, marks by patch. Right: trained."""
    with theme():
        fig = figure(8.8, 3.9)
        left, right = fig.subplots(1, 2)
        handles: dict[str, object] = {}
        gains = sorted(random["gain"].unique())
        marks = dict(zip(sorted(random["patch"].unique()), "osD^", strict=False))
        for gain, color in shades(gains).items():
            rows = random[(random["gain"] == gain) & random["converged"]].sort_values("num_tokens")
            means = rows.groupby("num_tokens")["mean"].mean()
            (handles[f"random, gain {gain:g}"],) = left.plot(means.index, means, color=color, lw=1)
            for patch, part in rows.groupby("patch"):
                left.plot(part["num_tokens"], part["mean"], color=color, ls="none", marker=marks[patch])
        for patch, mark in marks.items():
            (handles[f"patch {patch}"],) = left.plot([], [], color=INK, ls="none", marker=mark)
        log_axis(left.xaxis, sorted(random["num_tokens"].unique()), base=2)
        log_axis(left.yaxis, base=2)
        left.set(xlabel="sequence length L", ylabel="iterations per layer, mean", title="random weights, batch 16")
        largest = trained[(trained["batch_size"] == trained["batch_size"].max()) & trained["converged"]]
        whole = largest[largest.groupby("checkpoint")["gain"].transform("nunique") > 1]
        names = list(whole["checkpoint"].unique())
        for name, mark in zip(names, "sD^ov", strict=False):
            rows = whole[whole["checkpoint"] == name].sort_values("gain")
            (handles[name],) = right.plot(rows["gain"], rows["first"], color=INK, marker=mark, lw=1.2)
            right.plot(rows["gain"], rows["rest"], color=INK, marker=mark, mfc="none", lw=1, ls=":")
        right.set(
            xlabel="strength of dependency (gain)",
            ylabel="iterations",
            title=f"trained, batch {trained['batch_size'].max()}: layer 1 (full), others (open)",
        )
        finish(left)
        finish(right)
        legend_below(fig, handles)
    return fig


def draw_speedups(cells: pd.DataFrame) -> Figure:
    """Predicted against measured: from the three numbers, from shape alone, and from the number of calls."""
    panels = {"by_cost": "three measured numbers", "by_shape": "c from the model of cost", "by_depth": "calls alone"}
    made = [*panels, "speedup"]
    low, high = cells[made].min().min() / 1.2, cells[made].max().max() * 1.2
    with theme():
        fig = figure(10.2, 3.9)
        handles: dict[str, object] = {}
        for ax, (name, title) in zip(fig.subplots(1, 3, sharey=True), panels.items(), strict=True):
            ax.plot([low, high], [low, high], color=INK, lw=0.8)
            ax.axhline(1, color=INK, lw=0.6, ls=":")
            ax.axvline(1, color=INK, lw=0.6, ls=":")
            for decoder, rows in cells.groupby("decoder"):
                style = decoder_style(str(decoder))
                for batch in sorted(rows["batch_size"].unique()):
                    part, size = rows[rows["batch_size"] == batch], 3.5 + np.log2(batch)
                    (handle,) = ax.plot(
                        part[name],
                        part["speedup"],
                        color=style.color,
                        marker=style.marker,
                        ls="none",
                        ms=size,
                        alpha=0.8,
                    )
                    handles.setdefault(f"{decoder}, batch {batch}", handle)
            log_axis(ax.xaxis, base=2)
            log_axis(ax.yaxis, base=2)
            ax.set(xlabel="predicted speed-up", title=title, xlim=(low, high), ylim=(low, high))
            finish(ax)
        fig.axes[0].set_ylabel("measured speed-up")
        legend_below(fig, handles)
    return fig


def draw_frontier(border: pd.DataFrame, tested: pd.DataFrame, trained: pd.DataFrame) -> Figure:
    """Break-even iterations against L, a line per batch; measured ones as dots; where the trained flows stand."""
    with theme():
        fig = figure(6.4, 4.6)
        ax = fig.subplots()
        handles: dict[str, object] = {}
        batches = sorted(border["batch_size"].unique())
        same = np.logical_and.reduce([tested[name] == value for name, value in NETWORK.items() if name != "token_dim"])
        marks = dict(zip(sorted(trained[trained["gain"] == 1]["checkpoint"].unique()), "sD^ovP", strict=False))
        for batch, color in shades(batches).items():
            rows = border[border["batch_size"] == batch]
            (handles[f"break-even, batch {batch}"],) = ax.plot(rows["num_tokens"], rows["break_even"], color=color)
            dots = tested[same & (tested["batch_size"] == batch)]
            ax.plot(dots["num_tokens"], dots["break_even"], color=color, marker=".", ls="none")
            at = trained[(trained["gain"] == 1) & (trained["batch_size"] == batch)]
            for row in at.to_dict("records"):
                ax.plot(row["num_tokens"], row["mean"], color=color, marker=marks[row["checkpoint"]], ms=6, mfc="none")
        for name, mark in marks.items():
            (handles[name],) = ax.plot([], [], color=INK, marker=mark, ls="none", mfc="none")
        log_axis(ax.xaxis, sorted(border["num_tokens"].unique()), base=2)
        log_axis(ax.yaxis, base=2)
        ax.set(
            xlabel="sequence length L",
            ylabel="iterations per layer, mean",
            title="UJD is slower than sequential above the line of its batch",
        )
        finish(ax)
        legend_below(fig, handles)
    return fig
