"""Where the time of a decode goes: seconds per layer and mode (SeJD's Table A4), and iterations as in Table A3."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.figures.plot import Plot, Table, require
from analysis.figures.style import INK, PAPER, panels, shades
from analysis.load import PAPER_TAU, Runs, highest, nearest_tau, one_batch, ranked, title_of
from analysis.published import CITATION, reference
from analysis.text import quantity
from harness.runs.titles import title


def data(runs: Runs) -> pd.DataFrame:
    """Seconds and share of every layer, median over seeds, at one batch size per flow and the tau nearest to 0.5.

    Layers are timed in a decode of their own, other cells' beside it perhaps; where a cell has timed rounds, which are
    alone, all its layers together take the median of those.
    """
    rows = runs.joined("layers")
    rows = nearest_tau(one_batch(require(rows[rows["wall_s"].notna()], "no layer was timed")))
    together = rows.groupby("cell_id")["wall_s"].transform("sum")
    alone = rows["cell_id"].map(runs.tables["timings"].groupby("cell_id")["wall_s"].median())
    rows = rows.assign(wall_s=rows["wall_s"] * (alone / together).where(together > 0).fillna(1.0))
    rows = rows.assign(title=rows.apply(title_of, axis=1))
    by = ["flow", "dataset", "batch_size", "decoder", "series", "tau", "title", "layer"]
    found = rows.groupby(by, dropna=False).agg(
        wall_s=("wall_s", "median"),
        iterations=("iterations", "mean"),
        mode=("mode", lambda modes: "/".join(sorted(set(modes)))),
    )
    found = found.reset_index()
    total = found.groupby(["flow", "title"])["wall_s"].transform("sum")
    found = require(found.assign(share=found["wall_s"] / total)[total > 0], "no layer took measurable time")
    return ranked(found, "layer")


def draw(frame: pd.DataFrame) -> Figure:
    """A stacked bar per decoder, layer 1 darkest; sequential layers are hatched."""
    titles = list(dict.fromkeys(frame["title"]))
    layers = sorted(frame["layer"].unique())
    colors = shades(layers)
    longest = frame.groupby("title")["wall_s"].sum().max()
    unit, factor = ("ms", 1e3) if longest < 1 else ("s", 1.0)
    longest *= factor
    with panels(9.0, 1.3 + 0.42 * len(titles)) as (fig, (ax,), handles):
        for place, title in enumerate(titles):
            left = 0.0
            for row in frame[frame["title"] == title].to_dict("records"):
                width = row["wall_s"] * factor
                color = colors[row["layer"]]
                contrast = "black" if sum(int(color[i : i + 2], 16) for i in (1, 3, 5)) > 330 else "white"
                ax.barh(
                    place, width, left=left, height=0.7, color=color, edgecolor=PAPER, lw=0.8,
                    hatch="////" if "sequential" in row["mode"] else None, hatchcolor=contrast,
                )  # fmt: skip
                if width > 0.055 * longest:
                    ax.text(
                        left + width / 2, place, f"{row['share']:.0%}", ha="center", va="center", fontsize=7,
                        color=contrast, bbox={"facecolor": color, "edgecolor": "none", "pad": 1.2},
                    )  # fmt: skip
                left += width
            ax.text(left + 0.01 * longest, place, f"{quantity(left)} {unit}", va="center", fontsize=7.5)
        ax.set(yticks=range(len(titles)), yticklabels=titles, ylim=(len(titles) - 0.4, -0.6))
        ax.set(xlabel=f"wall time of one decode ({unit})", xlim=(0, longest * 1.12 or 1))
        ax.grid(False, axis="y")
        handles |= {f"layer {layer}": Patch(facecolor=color) for layer, color in colors.items()}
        handles["sequential"] = Patch(facecolor="none", edgecolor=INK, hatch="////")
    return fig


def finding(frame: pd.DataFrame) -> str:
    """Which layer takes most of SeJD's time and what that caps its speed-up at; the same for the slowest other."""
    batch = frame["batch_size"].iloc[0]
    selected = frame[frame["decoder"] == "sejd"]
    chosen = selected if len(selected) else frame
    title = chosen["title"].iloc[0]
    rows = chosen[chosen["title"] == title]
    top = highest(rows, "share")
    sentence = f"At batch {batch}, layer {top['layer']} ({top['mode']}) takes {top['share']:.0%} of the time of {title}"
    sequential = rows.loc[rows["mode"].str.contains("sequential"), "share"].sum()
    if 0 < sequential < 1:
        sentence += (
            f"; its sequential part, {sequential:.0%}, means that no acceleration of the other layers can make it more "
            f"than {1 / sequential:.2f} times as fast"
        )
    published = reference("layer_share", str(frame["dataset"].iloc[0]))
    if len(published) and top["decoder"] == "sejd":
        sentence += f". The paper reports {published['value'].iloc[0]:.0%} for layer 1 on {published['name'].iloc[0]}"
    return sentence + "."


def iterations_table(runs: Runs) -> pd.DataFrame:
    """One row per flow, decoder and tau, iterations per layer in columns; the paper's rows marked as published."""
    rows = require(runs.joined("layers"), "no cell has rows in `layers`")
    rows = ranked(rows.assign(decoding=rows.apply(title_of, axis=1)), "layer")
    by = ["flow", "batch_size", "decoding"]
    wide = rows.pivot_table(index=by, columns="layer", values="iterations", aggfunc="mean", sort=False)
    wide = wide.rename(columns="layer {}".format).reset_index()
    wide.insert(0, "source", "measured")
    paper = [
        {"source": "published", "flow": name, "batch_size": 256, "decoding": title("sejd", PAPER_TAU)}
        | {f"layer {layer}": value for layer, value in zip(part["layer"], part["value"], strict=True)}
        for dataset in dict.fromkeys(rows["dataset"])
        for name, part in reference("iterations", str(dataset)).groupby("name")
    ]
    return pd.concat([wide, pd.DataFrame(paper)], ignore_index=True) if paper else wide


def finding_iterations(frame: pd.DataFrame) -> str:
    """The spread of layer 1 and of the other layers over all measured decodes, the paper's beside."""
    measured = frame[frame["source"] == "measured"]
    later = [name for name in frame if str(name).startswith("layer ") and name != "layer 1"]
    sentence = f"{len(measured)} measured decodes; layer 1 takes {_span(measured[['layer 1']])} iterations or steps"
    if later:
        sentence += f", the later layers {_span(measured[later])}"
    paper = frame[frame["source"] == "published"]
    if len(paper) and later:
        sentence += f"; published for SeJD: {_span(paper[['layer 1']])} and {_span(paper[later])}"
    return sentence + "."


def _span(columns: pd.DataFrame) -> str:
    low, high = columns.min().min(), columns.max().max()
    return quantity(low) if low == high else f"{quantity(low)} to {quantity(high)}"


READING = (
    "The median of the timed rounds, shared out as layers took it in a decode of its own; hatched layers were decoded "
    f"sequentially. Of each decoder the cell with tau nearest to {PAPER_TAU:g}; one batch size per flow."
)

PLOTS = [Plot("time-breakdown", "Where the time goes", READING, data, draw, finding)]

ITERATIONS_READING = f"The mean over seeds. Rows marked published are Table A3 of {CITATION}."

TABLES = [
    Table("iterations", "Iterations per layer, in numbers", ITERATIONS_READING, iterations_table, finding_iterations)
]
