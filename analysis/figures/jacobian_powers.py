"""Why Jacobi iteration ends: norms of the powers of the update's strictly triangular Jacobian (SeJD, Prop. 3.1)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.plot import Plot, require
from analysis.figures.redundancy import named
from analysis.figures.style import INK, figure, finish, layer_lines, legend_below, theme
from analysis.load import Runs, highest, lowest
from analysis.text import quantity

FLOOR = 1e-60
"""Norms below are not drawn: 0, or on the way there."""
FEW = 4
"""Powers over which a factor is taken."""


def data(runs: Runs) -> pd.DataFrame:
    """Median, least and largest spectral norm over samples, per flow, layer and power."""
    rows = named(
        require(
            runs.table("jacobians"),
            "the runs hold no table `jacobians`; `harness probe convergence` writes it for small flows",
        )
    )
    grouped = rows.groupby(["flow", "layer", "power"])
    found = grouped["norm_spectral"].agg(norm="median", least="min", most="max", samples="size")
    return found.assign(
        norm_frobenius=grouped["norm_frobenius"].median(), num_tokens=grouped["num_tokens"].first()
    ).reset_index()


def draw(frame: pd.DataFrame) -> Figure:
    """Norms against the power, a line per layer: the first powers on the left, all of them on the right."""
    layers = sorted(frame["layer"].unique())
    styles = layer_lines(layers)
    length = int(frame["num_tokens"].iloc[0])
    with theme():
        fig = figure(8.6, 3.4)
        left, right = fig.subplots(1, 2)
        handles: dict[str, object] = {}
        for layer, rows in frame.groupby("layer"):
            rows = rows[rows["norm"] > FLOOR]
            for ax, shown in ((left, rows[rows["power"] <= 12]), (right, rows)):
                every = 1 if ax is left else 8
                (handles[f"layer {layer}"],) = ax.plot(
                    shown["power"], shown["norm"], **styles[layer], ms=4, markevery=every
                )
                least, color = shown["least"].clip(lower=FLOOR), styles[layer]["color"]
                ax.fill_between(shown["power"], least, shown["most"], color=color, alpha=0.12, lw=0)
        left.axhline(1, color=INK, lw=0.8, alpha=0.5)
        right.axvline(length, color=INK, lw=1.0, ls=(0, (4, 2)), alpha=0.6)
        right.annotate(
            f"0 at L = {length} ", (length, 0.95), xycoords=("data", "axes fraction"), ha="right", fontsize=8
        )  # fmt: skip
        for ax, title in ((left, "the first powers"), (right, "all powers")):
            ax.set(yscale="log", xlabel="power t", ylabel="spectral norm of Jᵗ", title=title)
            finish(ax)
        legend_below(fig, handles)
    return fig


def contraction(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per flow and layer: the norm of J, the largest of any power, and the first power with a norm below 1.

    Besides, the factors from one power's norm to the next: the mean over the first and over the last `FEW` before the
    powers vanish.
    """
    rows = []
    for (flow, layer), powers in frame.sort_values("power").groupby(["flow", "layer"]):
        below = powers[powers["norm"] < 1]
        vanished = powers[powers["most"] == 0]
        left = powers.loc[powers["norm"] > 0, "norm"].to_numpy()
        rows.append(
            {
                "flow": flow,
                "layer": layer,
                "norm": powers["norm"].iloc[0],
                "largest": powers["norm"].max(),
                "factor_first": (left[FEW] / left[0]) ** (1 / FEW) if len(left) > FEW else None,
                "factor_last": (left[-1] / left[-1 - FEW]) ** (1 / FEW) if len(left) > FEW else None,
                "first_below_one": int(below["power"].iloc[0]) if len(below) else None,
                "vanishes_at": int(vanished["power"].iloc[0]) if len(vanished) else None,
                "num_tokens": int(powers["num_tokens"].iloc[0]),
                "samples": int(powers["samples"].iloc[0]),
            }
        )
    return pd.DataFrame(rows)


def finding(frame: pd.DataFrame) -> str:
    """The norms of J, from which power on they contract, and where they vanish."""
    norms = contraction(frame)
    low, high = lowest(norms, "norm"), highest(norms, "norm")
    sentence = (
        f"The spectral norm of J runs from {quantity(low['norm'])} (layer {low['layer']}) to {quantity(high['norm'])} "
        f"(layer {high['layer']})"
    )
    late = highest(norms, "first_below_one")
    if late["first_below_one"] > 1:
        sentence += f"; that of J^t falls below 1 at t = {int(late['first_below_one'])} at the latest"
    vanishing = norms["vanishes_at"].dropna()
    if len(vanishing):
        sentence += f", and J^t is exactly 0 from t = {int(vanishing.max())} on"
    return sentence + "."


PLOTS = [
    Plot(
        name="jacobian-powers",
        title="Powers of the Jacobian",
        reading=(
            "J is the Jacobian of one Jacobi iteration at the fixed point, strictly lower triangular. To first order "
            "the error after t iterations is J^t times the first error, so the norm of J^t bounds what is left: the "
            "median over samples, the band from least to largest. J^L = 0, whatever the norms before."
        ),
        data=data,
        draw=draw,
        finding=finding,
    ),
]
