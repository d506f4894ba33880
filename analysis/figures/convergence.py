"""How a layer's error falls with its iterations (SeJD's Figures 4 and A2), sequential decoding beside."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.plot import Plot, require
from analysis.figures.style import INK, columns_for, panels_by_layer, styles
from analysis.load import BASELINE, Runs, one_batch, ranked, title_of
from analysis.text import listing, quantity

MAX_POINTS = 200
"""Longer curves are drawn at this many iterations, evenly spaced on the logarithmic axis."""

KEYS = ["flow", "batch_size", "decoder", "series", "tau", "title", "num_tokens", "layer"]


def curves(runs: Runs) -> pd.DataFrame:
    """Residual and median error, with its 10-90 % band, by layer and iteration, of each series at its smallest tau."""
    cells = one_batch(require(runs.cells_with_residuals, "no cell has rows in `residuals`"))
    least = cells.groupby(["flow", "series"])["tau"].transform("min")
    cells = cells[cells["tau"].isna() | (cells["tau"] == least)]
    cells = cells.assign(title=cells.apply(title_of, axis=1))
    named = [name for name in KEYS if name != "layer"]
    cells = cells.assign(curve=cells.groupby(named, dropna=False).ngroup())
    rows = runs.residuals(cells["cell_id"])
    # Columns of text are joined to the few rows that are left, never to a row per network call.
    curve_of = cells.set_index("cell_id")["curve"].reindex(rows["cell_id"].cat.categories).to_numpy()
    rows["curve"] = curve_of[rows["cell_id"].cat.codes]
    rows["error"] = rows["error_rms_p50"].fillna(rows["error_rms"])
    rows["cell_id"] = rows["cell_id"].cat.codes
    found = rows.groupby(["curve", "layer", "iteration"]).agg(
        residual=("residual", "median"),
        error=("error", "median"),
        error_p10=("error_rms_p10", "median"),
        error_p90=("error_rms_p90", "median"),
        cells=("cell_id", "nunique"),
    )
    found = found.reset_index().merge(cells.drop_duplicates("curve")[["curve", *named]], on="curve")
    found = found[[*KEYS, "iteration", "residual", "error", "error_p10", "error_p90", "cells"]]
    found = found.dropna(subset=["residual", "error"], how="all")
    return ranked(require(found, "`residuals` holds no number"), "layer", "iteration")


def data(runs: Runs) -> pd.DataFrame:
    """The curves as drawn: thinned where they are long, with the taus of the flow in `taus`."""
    found = curves(runs)
    last = found.groupby(KEYS, dropna=False)["iteration"].transform("max")
    kept = [iteration in _log_spaced(int(end)) for iteration, end in zip(found["iteration"], last, strict=True)]
    taus = runs.cells.dropna(subset=["tau"]).groupby("flow")["tau"].unique()
    text = {flow: " ".join(f"{tau:g}" for tau in sorted(values)) for flow, values in taus.items()}
    return found[kept].assign(taus=lambda frame: [text.get(flow, "") for flow in frame["flow"]]).reset_index(drop=True)


@cache
def _log_spaced(last: int) -> frozenset[int]:
    points = np.arange(1, last + 1) if last <= MAX_POINTS else np.geomspace(1, last, MAX_POINTS).round()
    return frozenset(points.astype(int).tolist())


def draw(frame: pd.DataFrame) -> Figure:
    """A panel per layer: error with its band as solid lines, residual dotted, tau lines, and where L makes it exact."""
    layers = sorted(frame["layer"].unique())
    columns, looks = columns_for(len(layers)), styles(frame, "title")
    with panels_by_layer(layers, 2.6, "iteration or step", "error (RMS), residual (max)") as (fig, axes, handles):
        for place, (ax, layer) in enumerate(zip(axes, layers, strict=True)):
            ax.set(xscale="log", yscale="log")
            panel = frame[frame["layer"] == layer]
            for title, rows in panel.groupby("title", sort=False):
                style = looks[str(title)]
                shown = rows.mask(rows[["residual", "error", "error_p10", "error_p90"]] <= 0)
                (line,) = ax.plot(rows["iteration"], shown["error"], **style.line, ms=4, markevery=_marks(len(rows)))
                low, high = shown["error_p10"], shown["error_p90"]
                ax.fill_between(rows["iteration"], low, high, color=style.color, alpha=0.18, lw=0)
                ax.plot(rows["iteration"], shown["residual"], color=style.color, ls=(0, (1, 1.4)), lw=1.3)
                handles.setdefault(str(title), line)
            for tau in [float(tau) for tau in frame["taus"].iloc[0].split()]:
                if tau > 0:
                    ax.axhline(tau, color=INK, lw=0.6, alpha=0.35, zorder=0)
                    if place % columns == columns - 1 or place == len(layers) - 1:
                        ax.annotate(
                            f"tau {tau:g}", (1, tau), xycoords=("axes fraction", "data"), xytext=(2, 0),
                            textcoords="offset points", fontsize=6, va="center", alpha=0.75, annotation_clip=True,
                        ).set_in_layout(False)  # fmt: skip
            steps = int(panel["num_tokens"].iloc[0]) - 1
            ax.axvline(steps, color=INK, lw=1.0, ls=(0, (4, 2)), alpha=0.6, zorder=0)
        fig.set_layout_engine("constrained", rect=(0, 0, 1 - 0.32 / fig.get_figwidth(), 1))  # room for the tau labels
        grey = axes[0].plot([], [], color=INK, ls=(0, (1, 1.4)), lw=1.3)[0]
        wall = axes[0].plot([], [], color=INK, ls=(0, (4, 2)), lw=1.0, alpha=0.6)[0]
        handles |= {"residual": grey, "exact after L − 1": wall}
    return fig


def _marks(count: int) -> list[int]:
    return sorted({int(place) for place in np.geomspace(1, max(count, 1), 8).round() - 1}) if count else []


def finding(frame: pd.DataFrame) -> str:
    """After how many iterations the error is a hundredth of the first, per layer, and what sequential needs."""
    batch = frame["batch_size"].iloc[0]
    iterated = frame[frame["decoder"] != BASELINE].dropna(subset=["residual"])
    if iterated.empty:
        return f"At batch {batch} nothing iterates; the curves are those of sequential decoding."
    title = fullest(iterated)
    chosen = iterated[iterated["title"] == title]
    needed = {int(str(layer)): _reaches(rows, 0.01) for layer, rows in chosen.groupby("layer")}
    reached = {layer: count for layer, count in needed.items() if count is not None}
    if not reached:
        least = min(rows["error"].min() / rows["error"].iloc[0] for _, rows in chosen.groupby("layer"))
        return (
            f"At batch {batch}, {title} stops before the median error of any layer is a hundredth of the first: "
            f"the least share left is {quantity(least)}."
        )
    slow, fast = max(reached, key=lambda n: reached[n]), min(reached, key=lambda n: reached[n])
    sentence = (
        f"At batch {batch}, {title} brings the median error of layer {slow} to a hundredth of its first value in "
        f"{reached[slow]} iterations"
    )
    if slow != fast:
        sentence += f", that of layer {fast} in {reached[fast]}"
    exact = frame[frame["decoder"] == BASELINE]
    if (steps := _reaches(exact[exact["layer"] == slow], 0.01)) is not None:
        sentence += f"; sequential decoding takes {steps} steps to do so in layer {slow}"
    never = [str(layer) for layer, count in needed.items() if count is None]
    if never:
        sentence += f". It stops earlier in {'layers' if len(never) > 1 else 'layer'} {listing(never)}"
    return sentence + "."


def fullest(rows: pd.DataFrame) -> str:
    """The series that iterates in most layers; of equals the longest curves, then the first."""
    counts = rows.groupby("title", sort=False).agg(layers=("layer", "nunique"), rows=("layer", "size"))
    return str(counts.sort_values(["layers", "rows"], ascending=False, kind="stable").index[0])


def _reaches(rows: pd.DataFrame, share: float) -> int | None:
    rows = rows.dropna(subset=["error"]).sort_values("iteration")
    below = rows[rows["error"] <= share * rows["error"].head(1).sum()]
    return int(below["iteration"].iloc[0]) if len(below) else None


READING = (
    "Error is the RMS difference to the layer's exact output for the same inputs: the median over samples, the "
    "band 10 to 90 %. Dotted: the residual of the stopping rule. Sequential decoding is drawn with the tokens "
    "not yet decoded taken as the layer's inputs; its iterations are steps. Horizontal lines are the tau of "
    f"the run; after L − 1 iterations every token is exact. Each decoder is shown at its smallest tau. Curves of "
    f"more than {MAX_POINTS} iterations are drawn at {MAX_POINTS} of them."
)

PLOTS = [Plot("convergence", "Convergence per layer", READING, data, draw, finding)]
