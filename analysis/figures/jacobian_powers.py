"""Why Jacobi iteration ends: norms of the powers of the update's strictly triangular Jacobian (SeJD, Prop. 3.1)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.plot import Plot
from analysis.figures.redundancy import probed
from analysis.figures.style import INK, layer_lines, panels
from analysis.load import Runs, highest, lowest
from analysis.text import quantity

FLOOR = 1e-60
"""Norms below are not drawn: 0, or on the way there."""
FEW = 4
"""Powers over which a factor is taken."""


def data(runs: Runs) -> pd.DataFrame:
    """Median, least and largest spectral norm over samples, per flow, layer and power."""
    rows = probed(runs, "jacobians", "convergence", " for small flows")
    grouped = rows.groupby(["flow", "layer", "power"])
    found = grouped["norm_spectral"].agg(norm="median", least="min", most="max", samples="size")
    frobenius, length = grouped["norm_frobenius"].median(), grouped["num_tokens"].first()
    return found.assign(norm_frobenius=frobenius, num_tokens=length).reset_index()


def draw(frame: pd.DataFrame) -> Figure:
    """Norms against the power, a line per layer: the first powers on the left, all of them on the right."""
    layers = sorted(frame["layer"].unique())
    styles = layer_lines(layers)
    length = int(frame["num_tokens"].iloc[0])
    with panels(8.6, 3.4, 2) as (fig, (left, right), handles):
        for layer, rows in frame.groupby("layer"):
            rows = rows[rows["norm"] > FLOOR]
            for ax, shown, every in ((left, rows[rows["power"] <= 12], 1), (right, rows, 8)):
                (line,) = ax.plot(shown["power"], shown["norm"], **styles[layer], ms=4, markevery=every)
                handles[f"layer {layer}"] = line
                least, color = shown["least"].clip(lower=FLOOR), styles[layer]["color"]
                ax.fill_between(shown["power"], least, shown["most"], color=color, alpha=0.12, lw=0)
        left.axhline(1, color=INK, lw=0.8, alpha=0.5)
        right.axvline(length, color=INK, lw=1.0, ls=(0, (4, 2)), alpha=0.6)
        at = ("data", "axes fraction")
        right.annotate(f"0 at L = {length} ", (length, 0.95), xycoords=at, ha="right", fontsize=8)
        for ax, title in ((left, "the first powers"), (right, "all powers")):
            ax.set(yscale="log", xlabel="power t", ylabel="spectral norm of Jᵗ", title=title)
    return fig


def contraction(frame: pd.DataFrame) -> pd.DataFrame:
    """Per flow and layer: norms of J, the first power with one below 1, and mean factors over `FEW` powers."""
    rows = []
    for (flow, layer), powers in frame.sort_values("power").groupby(["flow", "layer"]):
        left = powers.loc[powers["norm"] > 0, "norm"].to_numpy()
        enough = len(left) > FEW
        rows.append(
            {
                "flow": flow,
                "layer": layer,
                "norm": powers["norm"].iloc[0],
                "largest": powers["norm"].max(),
                "factor_first": (left[FEW] / left[0]) ** (1 / FEW) if enough else None,
                "factor_last": (left[-1] / left[-1 - FEW]) ** (1 / FEW) if enough else None,
                "first_below_one": _first_power(powers[powers["norm"] < 1]),
                "vanishes_at": _first_power(powers[powers["most"] == 0]),
                "num_tokens": int(powers["num_tokens"].iloc[0]),
                "samples": int(powers["samples"].iloc[0]),
            }
        )
    return pd.DataFrame(rows)


def _first_power(powers: pd.DataFrame) -> int | None:
    return int(powers["power"].iloc[0]) if len(powers) else None


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


READING = (
    "J is the Jacobian of one Jacobi iteration at the fixed point, strictly lower triangular. To first order "
    "the error after t iterations is J^t times the first error, so the norm of J^t bounds what is left: the "
    "median over samples, the band from least to largest. J^L = 0, whatever the norms before."
)

PLOTS = [Plot("jacobian-powers", "Powers of the Jacobian", READING, data, draw, finding)]
