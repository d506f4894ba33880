"""Speed against quality: what a decoder gains and what it costs, cell by cell, with the Pareto front."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.plot import Omitted, Plot, require
from analysis.figures.style import INK, PAPER, log_axis, panels, styles
from analysis.load import BASELINE, Runs, highest, lowest, ranked, title_of
from analysis.quality import INVALID, UNDECIDED, VALID
from analysis.text import listing, quantity, times, times_to
from harness.runs.titles import parsed

MEASURES = {
    "deviation_rmse": ("deviation", "deviation (RMSE, image units)"),
    "fid": ("FID", "FID"),
    "kid": ("KID", "KID"),
}

OURS = ("auto", "fitted", "frontier")
"""Decoders of this project."""
PAPERS = {
    "initial": ("zeros", "input", "normal"),
    "correction": (None,),
    "network_dtype": (None,),
    "select": ("first",),
}
"""What the papers' decoders have for these options; anything else is a part of this project."""
OUR_SIZE = 8.5
"""Of this project's markers, in points; the others have the theme's."""
ROUNDING = 1e-5
"""Deviations below this are rounding; the logarithmic axis ends above them and becomes linear down to 0."""


def is_ours(decoder: str, options: object) -> bool:
    """Whether a decoder is this project's, or has a part that is; the others are the papers'. `options` are JSON.

    >>> is_ours("auto", "{}"), is_ours("sejd", '{"initial": "zeros"}'), is_ours("sejd", '{"network_dtype": "bfloat16"}')
    (True, False, True)
    """
    known = parsed(options)
    return decoder in OURS or any(known.get(name, values[0]) not in values for name, values in PAPERS.items())


def data(runs: Runs, measure: str) -> pd.DataFrame:
    """Speed-up with its interval, the measure, validity and front membership of every cell that has both."""
    short = MEASURES[measure][0]
    quality = runs.joined("quality")
    require(quality[quality["status"] == "ok"], "no cell has a quality row")
    columns = ["cell_id", "fid_features", "kid_std", "num_samples", measure]
    frame = runs.speedups.merge(quality.loc[quality["status"] == "ok", columns], on="cell_id")
    frame = frame.merge(runs.validity[["cell_id", "valid"]], on="cell_id")
    require(frame.dropna(subset=[measure]), f"no timed cell has a {short}")
    frame = require(
        frame.dropna(subset=[measure, "speedup"]),
        f"no cell with a {short} was timed in the same round as {BASELINE}, so there is no speed-up",
    )
    if set(frame["decoder"]) == {BASELINE}:
        raise Omitted(f"{BASELINE} alone has a {short}; there is nothing to set against it")
    options = frame["cell_id"].map(runs.cells.set_index("cell_id")["options"])
    ours = [is_ours(*one) for one in zip(frame["decoder"], options, strict=True)]
    frame = ranked(frame.assign(title=frame.apply(title_of, axis=1), ours=ours, front=False))
    kept = frame[~frame["valid"].eq(INVALID)]
    for _, panel in kept.groupby(["flow", "batch_size", "fid_features"], dropna=False):
        frame.loc[panel.index, "front"] = on_front(panel[measure].to_numpy(), panel["speedup"].to_numpy())
    keep = ["flow", "batch_size", "decoder", "series", "tau", "seed", "title", measure]
    keep += ["speedup", "low", "high", "coverage"]
    extra = {"deviation_rmse": [], "fid": ["fid_features"], "kid": ["kid_std", "fid_features"]}[measure]
    return frame[[*keep, *extra, "pairs", "num_samples", "valid", "ours", "front"]].reset_index(drop=True)


def on_front(cost: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """(n,) whether no other point has at most this cost and at least this gain, and is better in one of them.

    >>> on_front(np.array([0.0, 0.1, 0.2]), np.array([1.0, 4.0, 3.0])).tolist()
    [True, True, False]
    """
    no_dearer = cost[None, :] <= cost[:, None]
    no_slower = gain[None, :] >= gain[:, None]
    better = (cost[None, :] < cost[:, None]) | (gain[None, :] > gain[:, None])
    return np.asarray(~(no_dearer & no_slower & better).any(axis=1))


def draw(frame: pd.DataFrame, measure: str) -> Figure:
    """One panel per batch size of one flow."""
    batches = sorted(frame["batch_size"].unique())
    columns = min(3, len(batches))
    width, height = max(4.6, 3.5 * columns), 3.0 * -(-len(batches) // columns) + 0.5
    with panels(width, height, len(batches), columns, share_x=True) as (fig, axes, handles):
        found: dict[str, Any] = {}
        looks = styles(frame)
        for ax, batch in zip(axes, batches, strict=True):
            panel = frame[frame["batch_size"] == batch]
            _scales(ax, frame[measure], measure)
            front = panel[panel["front"]].sort_values(measure)
            ax.step(front[measure], front["speedup"], where="post", color=INK, alpha=0.45, lw=1.0, zorder=1)
            ax.axhline(1, color=INK, lw=0.8, alpha=0.5, zorder=1)
            for series, rows in panel.groupby("series", sort=False):
                style = looks[str(series)]
                rows = rows.sort_values("tau")
                ax.plot(rows[measure], rows["speedup"], color=style.color, ls=style.dashes, lw=0.9, alpha=0.7)
                for row in rows.to_dict("records"):
                    hollow, open_ = row["valid"] == INVALID, row["valid"] == UNDECIDED
                    bar = [[row["speedup"] - row["low"]], [row["high"] - row["speedup"]]]
                    point = ax.errorbar(
                        row[measure], row["speedup"], yerr=None if pd.isna(row["low"]) else bar, fmt=style.marker,
                        color=style.color, mfc=PAPER if hollow else style.color, mec=style.color, elinewidth=1.0,
                        zorder=3, fillstyle="left" if open_ else "full", markerfacecoloralt=PAPER,
                        ms=OUR_SIZE if row["ours"] else None,
                    )  # fmt: skip
                    if not (hollow or open_) or str(series) not in found:
                        found[str(series)] = point
                    if pd.notna(row["tau"]) and rows["tau"].nunique() > 1:
                        ax.annotate(
                            f"{row['tau']:g}", (row[measure], row["speedup"]), xytext=(4, -8),
                            textcoords="offset points", fontsize=6.5, alpha=0.75,
                        )  # fmt: skip
            ax.set(title=f"batch {batch}", xlabel=MEASURES[measure][1])
            ax.set_ylabel("speed-up over sequential" if batch == batches[0] else "")
        handles.update((name, found[name]) for name in dict.fromkeys(frame["series"]) if name in found)
    return fig


def _scales(ax: Axes, values: pd.Series, measure: str) -> None:
    log_axis(ax.yaxis, base=2, unit="×")
    if measure == "deviation_rmse":
        positive = values[values > ROUNDING]
        if len(positive):
            ax.set_xscale("symlog", linthresh=10.0 ** np.floor(np.log10(positive.min())), linscale=0.4)


def finding(frame: pd.DataFrame, measure: str) -> str:
    """The fastest valid cell, the most accurate one that is faster than sequential, and the front's members."""
    short = MEASURES[measure][0]
    others = frame[frame["decoder"] != BASELINE]
    judged = others["valid"].notna().any()
    state = next((one for one in (VALID, UNDECIDED) if others["valid"].eq(one).any()), VALID) if judged else ""
    candidates = others[others["valid"] == state] if judged else others
    if candidates.empty:
        if not judged:
            return "Nothing was compared."
        return f"No cell stays within the tolerance; the nearest is {_described(lowest(others, measure), measure)}."
    best = highest(candidates, "speedup")
    sentence = f"The fastest {f'{state} ' if judged else ''}cell is {_described(best, measure)}"
    faster = candidates[candidates["speedup"] > 1]
    if faster.empty:
        sentence += "; none is faster than sequential"
    elif (nearest := lowest(faster, measure)) != best:
        sentence += f"; the lowest {short} among those faster than sequential is {_described(nearest, measure)}"
    members = list(dict.fromkeys(frame.loc[frame["front"], "series"]))
    sentence += f". On the Pareto front: {listing(members)}."
    if judged:
        beyond, open_ = (int(others["valid"].eq(state).sum()) for state in (INVALID, UNDECIDED))
        sentence += (
            f" {beyond} of {len(others)} cells are beyond the tolerance, {open_} undecided: hollow and half filled."
        )
    else:
        sentence += " The run states no tolerance, so no cell is called valid or invalid."
    if measure in ("fid", "kid") and frame["num_samples"].min() < 10000:
        sentence += f" {short} rests on as few as {int(frame['num_samples'].min()):,} samples, where it is biased."
    return sentence


def _described(row: dict[str, Any], measure: str) -> str:
    interval = "" if pd.isna(row["low"]) else f" (interval {times_to(row['low'], row['high'], row['coverage'])})"
    return (
        f"{row['title']} at batch {row['batch_size']}: {times(row['speedup'])}{interval} "
        f"at {MEASURES[measure][0]} {quantity(row[measure])}"
    )


PLOTS = [
    Plot(
        name=f"speed-against-{short.lower()}",
        title=f"Speed against {short}",
        reading=(
            "Each point is a cell: the median of the per-round ratios of sequential's wall time to its own, with the "
            f"95 % interval, against its {label}. Numbers beside points are tau. The stepped line is the "
            "Pareto front of the cells that are not beyond the run's tolerance; hollow points are, and half of one is "
            "filled where that is undecided. Large points are decoders of this project, small ones the papers'."
        ),
        data=partial(data, measure=measure),
        draw=partial(draw, measure=measure),
        finding=partial(finding, measure=measure),
    )
    for measure, (short, label) in MEASURES.items()
]
