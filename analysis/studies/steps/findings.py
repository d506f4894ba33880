"""How far a layer is from its exact output after t network calls: Jacobi iteration and sequential decoding (Fig. 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import panels, shades
from analysis.load import BASELINE, Runs, one_batch
from analysis.studies.base import Finding, Findings
from analysis.text import listing, quantity

ITERATED = "ujd"
MOSTLY = 0.95
"""Share of all calls: a layer that is behind once, and is named, is no counterexample."""


def findings(runs: Runs) -> Findings:
    """Errors of both methods, call by call."""
    cells = one_batch(runs.cells_with_residuals)
    rows = runs.residuals(cells["cell_id"]).merge(cells, on="cell_id")
    rows = rows[rows["tau"].isna() | (rows["tau"] == rows.groupby("flow")["tau"].transform("min"))]
    rows = rows[rows["decoder"].isin([ITERATED, BASELINE])]
    columns = ["flow", "num_tokens", "layer", "iteration", "decoder", "error_rms"]
    errors = rows[columns].sort_values(columns[:-1]).reset_index(drop=True)
    pairs = _pairs(errors)
    ahead = _ahead(pairs)
    return Findings(
        tables={"errors": pairs, "ahead": ahead},
        figures={"errors": draw(errors)} if len(errors) else {},
        values={"flows": errors["flow"].unique().tolist()},
        claims=tuple(_claims(ahead)),
    )


def _pairs(errors: pd.DataFrame) -> pd.DataFrame:
    index = ["flow", "num_tokens", "layer", "iteration"]
    wide = errors.pivot(index=index, columns="decoder", values="error_rms").dropna()
    return wide.rename(columns={ITERATED: "jacobi", BASELINE: "sequential"})[["jacobi", "sequential"]].reset_index()


def _ahead(pairs: pd.DataFrame) -> pd.DataFrame:
    grouped = pairs.assign(nearer=pairs["jacobi"] < pairs["sequential"]).groupby(["flow", "layer"], as_index=False)
    return grouped.agg(
        calls=("nearer", "size"),
        nearer=("nearer", "sum"),
        of_tokens=("num_tokens", "last"),
        jacobi=("jacobi", "last"),
        sequential=("sequential", "last"),
    )


def _claims(ahead: pd.DataFrame) -> list[Finding]:
    found = []
    for flow, rows in ahead.groupby("flow", sort=False):
        behind = rows[rows["nearer"] < rows["calls"]]
        share = rows["nearer"].sum() / rows["calls"].sum()
        layers = f" (behind at times in layer {listing([str(n) for n in behind['layer']])})" if len(behind) else ""
        ratios = rows["sequential"] / rows["jacobi"]
        found.append(
            Finding(
                "ahead-of-sequential",
                str(flow),
                f"nearer after {share:.0%} of all calls{layers}; when a layer has settled, after at most "
                f"{rows['calls'].max()} calls of {rows['of_tokens'].max()} tokens, sequential's RMS error is "
                f"{_about(ratios.min())} to {_about(ratios.max())} times as large",
                bool(share >= MOSTLY and (ratios > 1).all()),
                f"iteration has the smaller RMS error after {MOSTLY:.0%} of all calls or more, and in every layer when "
                "it has settled",
            )
        )
    return found


def _about(ratio: float) -> str:
    """Two digits: the smaller of the two errors is a hundred times float32's rounding.

    >>> _about(42878)
    '43,000'
    """
    return quantity(float(f"{ratio:.2g}"))


def draw(errors: pd.DataFrame) -> Figure:
    """A panel per flow: RMS error against network calls, solid for iteration, dashed for sequential decoding."""
    groups = list(errors.groupby("flow", sort=False))
    with panels(3.2 * len(groups), 3.2, len(groups)) as (fig, axes, handles):
        for ax, (flow, rows) in zip(axes, groups, strict=True):
            rows = rows[rows["error_rms"] > 0]  # what is exact has no place on a logarithmic axis
            for layer, color in shades(range(1, int(rows["layer"].max()) + 1)).items():
                for decoder, dashes in ((ITERATED, "-"), (BASELINE, (0, (3, 1.5)))):
                    part = rows[(rows["layer"] == layer) & (rows["decoder"] == decoder)]
                    (line,) = ax.plot(part["iteration"], part["error_rms"], color=color, ls=dashes, lw=1.3)
                    if decoder == ITERATED:
                        handles[f"layer {layer}"] = line
            ax.set(title=flow, xlabel="network calls", xscale="log", yscale="log")
            least = rows.loc[rows["decoder"] == ITERATED, "error_rms"].min()
            ax.set_ylim(bottom=10 ** np.floor(np.log10(least)))
        axes[0].set_ylabel("RMS error of the layer's output")
    return fig
