"""Figures of the study: iterations, predicted against measured speed-up, and where UJD turns slower."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import INK, decoder_style, log_axis, panels, shades
from analysis.studies.ujd_loss.cost_model import NETWORK, PREDICTIONS


def draw_iterations(random: pd.DataFrame, trained: pd.DataFrame) -> Figure:
    """Left: flows with random weights, mean iterations against L, a line per gain, marks by patch. Right: trained."""
    with panels(8.8, 3.9, 2) as (fig, (left, right), handles):
        marks = dict(zip(sorted(random["patch"].unique()), "osD^", strict=False))
        for gain, color in shades(sorted(random["gain"].unique())).items():
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
        batch = trained["batch_size"].max()
        largest = trained[(trained["batch_size"] == batch) & trained["converged"]]
        whole = largest[largest.groupby("checkpoint")["gain"].transform("nunique") > 1]
        for (name, rows), mark in zip(whole.groupby("checkpoint", sort=False), "sD^ov", strict=False):
            rows = rows.sort_values("gain")
            (handles[str(name)],) = right.plot(rows["gain"], rows["first"], color=INK, marker=mark, lw=1.2)
            right.plot(rows["gain"], rows["rest"], color=INK, marker=mark, mfc="none", lw=1, ls=":")
        right.set(xlabel="strength of dependency (gain)", ylabel="iterations")
        right.set_title(f"trained, batch {batch}: layer 1 (full), others (open)")
    return fig


def draw_speedups(cells: pd.DataFrame) -> Figure:
    """Predicted against measured: from the three numbers, from shape alone, and from the number of calls."""
    titles = ("three measured numbers", "c from the model of cost", "calls alone")
    made = [*PREDICTIONS, "speedup"]
    low, high = cells[made].min().min() / 1.2, cells[made].max().max() * 1.2
    with panels(10.2, 3.9, 3, share_y=True) as (fig, axes, handles):
        for ax, name, title in zip(axes, PREDICTIONS, titles, strict=True):
            ax.plot([low, high], [low, high], color=INK, lw=0.8)
            ax.axhline(1, color=INK, lw=0.6, ls=":")
            ax.axvline(1, color=INK, lw=0.6, ls=":")
            for (decoder, batch), rows in cells.groupby(["decoder", "batch_size"]):
                style = decoder_style(str(decoder))
                (handles[f"{decoder}, batch {batch}"],) = ax.plot(
                    rows[name], rows["speedup"], color=style.color, marker=style.marker, ls="none",
                    ms=3.5 + np.log2(rows["batch_size"].iloc[0]), alpha=0.8,
                )  # fmt: skip
            log_axis(ax.xaxis, base=2)
            log_axis(ax.yaxis, base=2)
            ax.set(xlabel="predicted speed-up", title=title, xlim=(low, high), ylim=(low, high))
        axes[0].set_ylabel("measured speed-up")
    return fig


def draw_frontier(border: pd.DataFrame, tested: pd.DataFrame, trained: pd.DataFrame) -> Figure:
    """Break-even iterations against L, a line per batch; measured ones as dots; where the trained flows stand."""
    same = np.logical_and.reduce([tested[name] == value for name, value in NETWORK.items() if name != "token_dim"])
    counted = trained[trained["gain"] == 1]
    marks = dict(zip(sorted(counted["checkpoint"].unique()), "sD^ovP", strict=False))
    with panels(6.4, 4.6) as (fig, (ax,), handles):
        for batch, color in shades(sorted(border["batch_size"].unique())).items():
            rows = border[border["batch_size"] == batch]
            (handles[f"break-even, batch {batch}"],) = ax.plot(rows["num_tokens"], rows["break_even"], color=color)
            dots = tested[same & (tested["batch_size"] == batch)]
            ax.plot(dots["num_tokens"], dots["break_even"], color=color, marker=".", ls="none")
            for row in counted[counted["batch_size"] == batch].to_dict("records"):
                ax.plot(row["num_tokens"], row["mean"], color=color, marker=marks[row["checkpoint"]], ms=6, mfc="none")
        for name, mark in marks.items():
            (handles[name],) = ax.plot([], [], color=INK, marker=mark, ls="none", mfc="none")
        log_axis(ax.xaxis, sorted(border["num_tokens"].unique()), base=2)
        log_axis(ax.yaxis, base=2)
        ax.set(xlabel="sequence length L", ylabel="iterations per layer, mean")
        ax.set_title("UJD is slower than sequential above the line of its batch")
    return fig
