"""What the stopping threshold buys: time, iterations, FID and deviation against tau (SeJD's Figure 5)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.plot import Plot, require
from analysis.figures.style import INK, lines_against_tau, panels
from analysis.load import Runs, highest, one_batch, ranked
from analysis.regression import power
from analysis.text import listing, quantity, times

MEASURES = {
    "wall_s": "wall time (s)",
    "depth": "depth (network calls)",
    "fid": "FID",
    "deviation_rmse": "deviation (RMSE, image units)",
}
"""Column to axis label."""


def data(runs: Runs) -> pd.DataFrame:
    """Medians over seeds by series and tau, for series with two taus or more; sequential's rows have no tau."""
    timed = runs.speedups[["cell_id", "wall_s", "speedup"]]
    layers = runs.tables["layers"].groupby("cell_id").agg(depth=("depth", "sum"), iterations=("iterations", "sum"))
    quality = runs.tables["quality"]
    quality = quality.loc[quality["status"] == "ok", ["cell_id", "fid", "deviation_rmse"]]
    frame = runs.cells.merge(timed, on="cell_id", how="left").merge(layers.reset_index(), on="cell_id", how="left")
    frame = frame.merge(quality, on="cell_id", how="left").dropna(subset=list(MEASURES), how="all")
    swept = frame.groupby(["flow", "batch_size", "series"])["tau"].transform("nunique") > 1
    chosen = one_batch(require(frame[swept], "no decoder was measured at two values of tau or more"))
    exact = frame[frame["tau"].isna() & (frame["decoder"] == "sequential")]
    batches = chosen.groupby("flow")["batch_size"].first()
    exact = exact[exact["batch_size"] == exact["flow"].map(batches)]
    by = ["flow", "batch_size", "decoder", "series", "tau"]
    measured = [*MEASURES, "iterations", "speedup"]
    return ranked(pd.concat([exact, chosen]).groupby(by, dropna=False)[measured].median().reset_index())


def draw(frame: pd.DataFrame) -> Figure:
    """One panel per measure that anything was measured of, tau on a logarithmic axis."""
    swept = frame[frame["tau"].notna()]
    shown = {column: label for column, label in MEASURES.items() if swept[column].notna().any()}
    with panels(2.75 * len(shown) + 0.4, 3.1, len(shown)) as (fig, axes, handles):
        for ax, (column, label) in zip(axes, shown.items(), strict=True):
            lines_against_tau(ax, frame, column, handles)
            exact = frame.loc[frame["tau"].isna(), column].dropna()
            if len(exact) and column != "deviation_rmse":
                handles["sequential"] = ax.axhline(exact.iloc[0], color=INK, lw=1, alpha=0.5)
            ax.set(xlabel="tau", title=label)
            if column != "deviation_rmse" and column != "fid":
                ax.set_ylim(bottom=0)
    return fig


def finding(frame: pd.DataFrame) -> str:
    """How time and deviation change from the smallest to the largest tau, and how the deviation grows with it."""
    batch = frame["batch_size"].iloc[0]
    parts = []
    for series, rows in frame[frame["tau"] > 0].groupby("series", sort=False):
        rows = rows.sort_values("tau")
        first, last = rows.iloc[0], rows.iloc[-1]
        words = []
        both = rows.iloc[[0, -1]].notna().all()
        if both["wall_s"]:
            words.append(f"is {times(first['wall_s'] / last['wall_s'])} as fast")
        if both["deviation_rmse"]:
            fit = power(rows["tau"].to_numpy(), rows["deviation_rmse"].to_numpy())
            interval = "" if pd.isna(fit.low) else f", 95 % interval {quantity(fit.low)} to {quantity(fit.high)}"
            law = "" if pd.isna(fit.value) else f" (∝ tau^{quantity(fit.value)}{interval})"
            words.append(
                f"deviates by {quantity(last['deviation_rmse'])} instead of {quantity(first['deviation_rmse'])}{law}"
            )
        if both["fid"]:
            words.append(f"has FID {quantity(last['fid'])} instead of {quantity(first['fid'])}")
        if words:
            parts.append(f"{series} at tau = {last['tau']:g} {listing(words)}, compared with tau = {first['tau']:g}")
    falls = _not_monotone(frame)
    sentence = f"At batch {batch}: {'; '.join(parts)}." if parts else f"At batch {batch} only iterations were measured."
    return sentence + (f" The deviation does not always fall with tau: {listing(falls)}." if falls else "")


def _not_monotone(frame: pd.DataFrame) -> list[str]:
    swept = frame[frame["tau"] > 0].dropna(subset=["deviation_rmse"]).sort_values("tau")
    return [
        f"{series} peaks at tau = {highest(rows, 'deviation_rmse')['tau']:g}"
        for series, rows in swept.groupby("series", sort=False)
        if not rows["deviation_rmse"].is_monotonic_increasing
    ]


READING = (
    "Median wall time over rounds, depth summed over layers, FID and deviation of each decoder that was "
    "measured at several tau; the horizontal line is sequential decoding. One batch size per flow, the one with "
    "most cells. Times are this machine's own; the exponent of the deviation is a least-squares slope of "
    "logarithms with Student's interval."
)

PLOTS = [Plot("tau-sensitivity", "Sensitivity to tau", READING, data, draw, finding)]
