"""How memory grows with the batch and with the sequence, and where one decoder overtakes another."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.plot import Omitted, Plot, require
from analysis.figures.style import log_axis, panels, styles
from analysis.load import Runs, highest, lowest, nearest_tau, ranked, title_of
from analysis.regression import power
from analysis.text import quantity

MIB = 2**20
NOISE = 0.05
"""Lines that differ by less than this share at a size are taken as equal there, and do not cross."""
AXES = {"batch_size": "batch size", "num_tokens": "sequence length L"}
MEASURES = {"decode_bytes": "peak while decoding", "cache_bytes": "key-value cache"}


def data(runs: Runs, axis: str) -> pd.DataFrame:
    """One row per decoder, size, method and measure, with its line's exponent; peaks less the weights where counted."""
    rows = runs.joined("memory")
    rows = require(rows[(rows["status"] == "ok") & rows["peak_bytes"].notna()], "no memory was measured")
    counted = rows["method"].str.startswith("cuda")
    rows = rows.assign(decode_bytes=rows["peak_bytes"] - rows["weights_bytes"].where(counted, 0))
    rows = rows.merge(runs.cells[["cell_id", "device"]], on="cell_id")
    held = "batch_size" if axis == "num_tokens" else "num_tokens"
    rows = nearest_tau(rows.assign(title=rows.apply(title_of, axis=1)))
    group = ["dataset", "device"] if axis == "num_tokens" else ["flow"]
    line = [*group, "method", "series", "decoder", "tau", "title", held]
    long = rows.melt([*line, axis], list(MEASURES), var_name="measure", value_name="bytes")
    long = long.groupby([*line, "measure", axis], dropna=False)["bytes"].median().reset_index()
    if axis == "num_tokens":
        long = long.assign(flow=long["dataset"] + ", " + long["device"])
        counts = long.groupby(["flow", held])[axis].nunique().reset_index(name="sizes").sort_values(["sizes", held])
        best = counts.groupby("flow")[held].last()
        long = long[long[held] == long["flow"].map(best)]
    once = long["method"] == long.groupby("flow")["method"].transform("min")
    long = long[once | (long["measure"] != "cache_bytes")]  # the cache is the same for every method
    lines = ["flow", "method", "measure", "series", "tau", held]
    sizes = long.groupby(lines, dropna=False)[axis].transform("nunique")
    long = require(long[sizes > 1], f"memory was measured at no two values of {AXES[axis]} for any decoder")
    fits = [
        [*key, *power(part[axis].to_numpy(), part["bytes"].to_numpy())[:3]]
        for key, part in long.groupby(lines, dropna=False)
    ]
    exponents = ["exponent", "exponent_low", "exponent_high"]
    found = long.merge(pd.DataFrame(fits, columns=[*lines, *exponents]), on=lines)
    return ranked(found[[*lines, "decoder", "title", axis, "bytes", *exponents]], "method", "measure", axis)


def crossings(frame: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Where one decoder's measured line overtakes another's, interpolated in logarithms between measured sizes."""
    found = []
    for (method, measure), rows in frame.groupby(["method", "measure"]):
        lines = {name: part.set_index(axis)["bytes"].sort_index() for name, part in rows.groupby("title", sort=False)}
        for (one, first), (other, second) in combinations(lines.items(), 2):
            common = first.index.intersection(second.index)
            a, b = first.loc[common].to_numpy(float), second.loc[common].to_numpy(float)
            known = (a > 0) & (b > 0)
            x, gap = np.log(np.asarray(common, float)[known]), np.log(a[known]) - np.log(b[known])
            apart = np.abs(gap) > np.log(1 + NOISE)
            for i in np.flatnonzero((gap[:-1] * gap[1:] < 0) & apart[:-1] & apart[1:]):
                at = x[i] - gap[i] * (x[i + 1] - x[i]) / (gap[i + 1] - gap[i])
                above = one if gap[i + 1] > 0 else other
                below = other if above == one else one
                found.append((method, measure, above, below, float(np.exp(at))))
    return pd.DataFrame(found, columns=["method", "measure", "above", "below", "at"])


def draw(frame: pd.DataFrame, axis: str) -> Figure:
    """A panel per method and measure, both axes logarithmic, the fitted exponent beside each name."""
    positive = frame[frame["bytes"] > 0]
    present = set(zip(positive["method"], positive["measure"], strict=True))
    shown = sorted(present, key=lambda panel: (panel[0], list(MEASURES).index(panel[1])))
    if not shown:
        raise Omitted("every measured figure is zero")
    looks = styles(frame, "title")
    with panels(4.4 * len(shown), 3.6, len(shown)) as (fig, axes, handles):
        for ax, (method, measure) in zip(axes, shown, strict=True):
            rows = positive[(positive["method"] == method) & (positive["measure"] == measure)]
            for title, line in rows.groupby("title", sort=False):
                style = looks[str(title)]
                (handles[str(title)],) = ax.plot(line[axis], line["bytes"] / MIB, **style.line)
                ax.annotate(
                    f"{line['exponent'].iloc[0]:.2f}", (line[axis].iloc[-1], line["bytes"].iloc[-1] / MIB),
                    xytext=(5, 0), textcoords="offset points", fontsize=7, va="center", color=style.color,
                )  # fmt: skip
            for cross in crossings(rows, axis).to_dict("records"):
                color = looks[cross["above"]].color
                ax.axvline(cross["at"], color=color, lw=0.8, ls=":", zorder=0)
            log_axis(ax.xaxis, sorted(frame[axis].unique()), base=2)
            log_axis(ax.yaxis, base=2)
            how = "counted" if measure == "cache_bytes" else method
            ax.set(xlabel=AXES[axis], ylabel="MiB", title=f"{MEASURES[measure]} ({how})")
    return fig


def finding(frame: pd.DataFrame, axis: str) -> str:
    """The exponents with their intervals, and the crossing points."""
    held = "num_tokens" if axis == "batch_size" else "batch_size"
    parts = []
    for method in sorted(frame["method"].unique()):
        rows = frame[(frame["method"] == method) & (frame["measure"] == "decode_bytes")]
        lines = rows.drop_duplicates("title").dropna(subset=["exponent"])
        if len(lines):
            low, high = lowest(lines, "exponent"), highest(lines, "exponent")
            words = f"{method}: the peak of {high['title']} grows as {AXES[axis]}^{_interval(high)}"
            if low["title"] != high["title"]:
                words += f", that of {low['title']} as {AXES[axis]}^{_interval(low)}"
            top = rows[rows[axis] == rows[axis].max()]
            most, least = highest(top, "bytes"), lowest(top, "bytes")
            words += f"; at {int(top[axis].iloc[0]):,} {most['title']} needs most ({quantity(most['bytes'] / MIB)} MiB)"
            if most["title"] != least["title"]:
                words += f" and {least['title']} least ({quantity(least['bytes'] / MIB)} MiB)"
            parts.append(words)
    crossed = crossings(frame[frame["measure"] == "decode_bytes"], axis).to_dict("records")
    where = [f"{row['above']} overtakes {row['below']} at {quantity(row['at'])} ({row['method']})" for row in crossed]
    size = f"{'L' if held == 'num_tokens' else 'batch size'} = {frame[held].iloc[0]}"
    sentence = f"At {size}, {'; '.join(parts)}." if parts else ""
    told = f"Crossings: {'; '.join(where)}." if where else "No two lines of the peak cross in the measured range."
    return f"{sentence} {told}"


def _interval(row: dict) -> str:
    if pd.isna(row["exponent_low"]):
        return f"{row['exponent']:.2f} (two sizes, no interval)"
    return f"{row['exponent']:.2f} (95 % interval {row['exponent_low']:.2f} to {row['exponent_high']:.2f})"


PLOTS = [
    Plot(
        name=f"memory-against-{slug}",
        title=f"Memory against {label}",
        reading=(
            "Peak memory of one decode: on CUDA the allocator's peak less the weights, on a CPU the growth of a fresh "
            "process's resident memory; the cache is counted, not measured. Numbers at the line ends are exponents "
            f"fitted by least squares in logarithms. Vertical dotted lines are crossings, of lines that differ by more "
            f"than {NOISE:.0%} on both sides. {note} A cache of zero bytes "
            "cannot be shown on a logarithmic axis and is left out."
        ),
        data=partial(data, axis=axis),
        draw=partial(draw, axis=axis),
        finding=partial(finding, axis=axis),
    )
    for axis, slug, label, note in (
        ("batch_size", "batch", "batch size", "Of each decoder the cell with tau nearest to 0.5."),
        (
            "num_tokens",
            "length",
            "sequence length",
            "Flows of one dataset that differ in length may differ in other respects too, so the exponent is theirs, "
            "not the method's alone.",
        ),
    )
]
