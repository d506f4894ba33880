"""What the initial guess is worth: the error of each layer's Jacobi iteration from each guess (SeJD's Figure 6)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.plot import Plot
from analysis.figures.redundancy import probed
from analysis.figures.style import Dashes, palette, panels_by_layer
from analysis.load import Runs
from analysis.text import listing

ORDER = ("zeros", "normal", "input", "fitted")
NAMES = {"zeros": "zeros", "normal": "standard normal", "input": "the layer's input", "fitted": "fitted"}
DASHES: tuple[Dashes, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1, 1, 1)))
MARKERS = "os^D"
GOAL = 0.01
"""RMS error, in the layer's own units, that iterations are counted to in `finding`."""
FLOOR = 1e-8
"""Errors below are not drawn: no stopping rule reaches so far."""

KEYS = ["flow", "layer", "initial"]


def samples(runs: Runs) -> pd.DataFrame:
    """Residual and errors by sample and iteration; one that is done stays, so that medians are over all samples."""
    rows = probed(runs, "convergence", "convergence")
    rows = rows.assign(initial=lambda frame: frame["initial"].astype(str))
    last = rows.groupby(KEYS)["iteration"].transform("max")
    ends = rows[rows["iteration"] == rows.groupby([*KEYS, "cell_id", "sample"])["iteration"].transform("max")]
    missing = (last[ends.index] - ends["iteration"]).astype(int)
    held = ends.loc[ends.index.repeat(missing)].copy()
    held["iteration"] += held.groupby([*KEYS, "cell_id", "sample"]).cumcount() + 1
    held["residual"] = 0.0
    columns = [*KEYS, "num_tokens", "cell_id", "sample", "iteration", "residual", "error_inf", "error_rms"]
    return pd.concat([rows, held])[columns].sort_values([*KEYS, "cell_id", "sample", "iteration"], ignore_index=True)


def data(runs: Runs) -> pd.DataFrame:
    """Median error and its 10-90 % band over samples, per flow, layer, guess and iteration."""
    grouped = samples(runs).groupby([*KEYS, "iteration"])
    shares = {"error_p10": 0.1, "error": 0.5, "error_p90": 0.9}
    found = pd.DataFrame({name: grouped["error_rms"].quantile(share) for name, share in shares.items()})
    return found.assign(residual=grouped["residual"].median(), samples=grouped.size()).reset_index()


def ordered(names: pd.Series) -> list[str]:
    """The guesses present: the known ones in their order, then others."""
    present = set(names)
    return [*(name for name in ORDER if name in present), *sorted(present - set(ORDER))]


def draw(frame: pd.DataFrame) -> Figure:
    """A panel per layer, a line per guess: error against iteration, residual dotted thin."""
    layers = sorted(frame["layer"].unique())
    guesses = ordered(frame["initial"])
    colors = palette(len(guesses))
    with panels_by_layer(layers, 2.5, "iteration", "error (RMS)") as (fig, axes, handles):
        for ax, layer in zip(axes, layers, strict=True):
            ax.set_yscale("log")
            for number, guess in enumerate(guesses):
                rows = frame[(frame["layer"] == layer) & (frame["initial"] == guess)]
                rows = rows[rows["error"] > FLOOR]
                shown = rows[["error", "error_p10", "error_p90"]].clip(lower=FLOOR)
                color, place = colors[number], number % len(DASHES)
                (line,) = ax.plot(
                    rows["iteration"], shown["error"], color=color, ls=DASHES[place], marker=MARKERS[place], ms=4,
                    markevery=2,
                )  # fmt: skip
                low, high = shown["error_p10"], shown["error_p90"]
                ax.fill_between(rows["iteration"], low, high, color=color, alpha=0.12, lw=0)
                handles.setdefault(NAMES.get(guess, guess), line)
    return fig


def iterations_to(frame: pd.DataFrame, goal: float) -> pd.DataFrame:
    """Iterations after which the median error is at most `goal`, per flow, layer and guess; missing where none are."""
    below = frame[frame["error"] <= goal].groupby(KEYS)["iteration"].min()
    every = frame.groupby(KEYS).size().index
    return below.reindex(every).rename("iterations").reset_index()


def finding(frame: pd.DataFrame) -> str:
    """Iterations that each guess takes to `GOAL`, in layer 1 and in the others."""
    counts = iterations_to(frame, GOAL).set_index(["layer", "initial"])["iterations"].unstack()
    counts = counts[ordered(frame["initial"])]
    words = []
    for layers, where in ((counts[counts.index == 1], "layer 1"), (counts[counts.index > 1], "the median later layer")):
        if len(layers):
            typical = layers.median().dropna()
            parts = [f"{value:g} from {NAMES.get(str(name), name)}" for name, value in typical.items()]
            words.append(f"{where} takes {listing(parts)}" if parts else f"{where} does not come that far")
    return f"To an RMS error of {GOAL:g}, " + "; ".join(words) + f" (median of {frame['samples'].max():d} samples)."


READING = (
    "Each layer alone, given its exact input, in float64: the error to its sequential output after each "
    "Jacobi iteration, the median over samples with the band 10 to 90 %. Iteration 0 is the guess itself. "
    "Errors below 1e-8 are not drawn, but are in the CSV down to the fixed point."
)

PLOTS = [Plot("initial-guesses", "Error by initial guess", READING, data, draw, finding)]
