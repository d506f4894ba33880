"""Of what order a layer's iteration converges, against the claim that it is superlinear (SeJD, Prop. 3.1)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.convergence import KEYS, curves, fullest
from analysis.figures.plot import Omitted, Plot, require
from analysis.figures.style import INK, layer_lines, panels, styles
from analysis.load import BASELINE, Runs, highest, lowest
from analysis.regression import order_of_convergence
from analysis.text import quantity


def data(runs: Runs) -> pd.DataFrame:
    """Successive error ratios of every iterated layer, and the fitted order of each with its interval."""
    rows = curves(runs)
    rows = rows[(rows["decoder"] != BASELINE) & rows["residual"].notna() & (rows["error"] > 0)]
    rows = require(rows, "no iteration with an error was recorded")
    grouped = rows.groupby(KEYS, dropna=False, sort=False)
    rows = rows.assign(ratio=rows["error"] / grouped["error"].shift())
    table = pd.DataFrame(
        [[*key, *order_of_convergence([group["error"].to_numpy()])] for key, group in grouped],
        columns=[*KEYS, "order", "order_low", "order_high", "_intercept", "pairs"],
    ).drop(columns="_intercept")
    if table["order"].isna().all():
        raise Omitted("no layer has three iterations with an error above rounding, too few to fit an order")
    return rows[[*KEYS, "iteration", "error", "ratio"]].merge(table, on=KEYS).reset_index(drop=True)


def orders(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per series and layer: the fitted order."""
    return frame.drop_duplicates(["title", "layer"]).dropna(subset=["order"])


def draw(frame: pd.DataFrame) -> Figure:
    """Left the ratio of successive errors of the series that iterates most; right the fitted order per layer."""
    title = fullest(frame)
    chosen = frame[frame["title"] == title].dropna(subset=["ratio"])
    layers = sorted(frame["layer"].unique())
    lines = layer_lines(layers)
    looks = styles(frame, "title")
    with panels(9.0, 3.4, 2) as (fig, (left, right), handles):
        for layer, rows in chosen.groupby("layer"):
            (handles[f"layer {layer}"],) = left.plot(rows["iteration"], rows["ratio"], **lines[layer], ms=4)
        left.axhline(1, color=INK, lw=0.8, alpha=0.5)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set(yscale="log", xlabel="iteration t", ylabel="error(t) / error(t − 1)", title=f"error ratios, {title}")
        fitted = orders(frame)
        names = list(dict.fromkeys(fitted["title"]))
        for place, name in enumerate(names):
            rows = fitted[fitted["title"] == name]
            style = looks[str(name)]
            shift = 0.12 * (place - (len(names) - 1) / 2)
            bars = np.vstack([rows["order"] - rows["order_low"], rows["order_high"] - rows["order"]])
            handles[name] = right.errorbar(
                rows["layer"] + shift, rows["order"], yerr=np.nan_to_num(bars), fmt=style.marker, color=style.color,
                ms=5, elinewidth=1,
            )  # fmt: skip
        right.axhline(1, color=INK, lw=0.8, alpha=0.5)
        right.set(xlabel="layer, in decoding order", ylabel="order of convergence", xticks=layers)
        right.set_title("fitted order, 95 % interval")
    return fig


def finding(frame: pd.DataFrame) -> str:
    """In how many layers the interval of the order lies above one, and whether the ratios fall."""
    fitted = orders(frame)
    judged = fitted.dropna(subset=["order_low"])
    low, high = lowest(fitted, "order"), highest(fitted, "order")
    sentence = (
        f"The fitted order runs from {quantity(low['order'])} ({low['title']}, layer {low['layer']}) to "
        f"{quantity(high['order'])} ({high['title']}, layer {high['layer']})"
    )
    above = int((judged["order_low"] > 1).sum())
    below = int((judged["order_high"] < 1).sum())
    sentence += f"; the 95 % interval lies above 1 (superlinear) in {above} of {len(judged)} fits, below 1 in {below}"
    ratios = frame.dropna(subset=["ratio"]).groupby(["title", "layer"])["ratio"]
    falling = (ratios.last() < ratios.first()).sum()
    words = f"The error ratio is smaller at the end than at the start in {falling} of {ratios.ngroups} curves."
    return f"{sentence}. {words}"


READING = (
    "The order p of error(t + 1) = c · error(t)^p is the slope of successive errors in logarithms, by least "
    "squares with Student's interval; errors below a millionth of the curve's largest are rounding and left "
    "out. Falling ratios mean faster than linear."
)

PLOTS = [Plot("convergence-order", "Order of convergence", READING, data, draw, finding)]
