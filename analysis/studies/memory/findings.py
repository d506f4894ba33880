"""Memory against batch and sequence length: what is counted, what is measured, and the formula for both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import INK, decoder_style, figure, finish, legend_below, log_axis, theme
from analysis.load import Runs, lowest
from analysis.published import published
from analysis.regression import power
from analysis.studies.base import Finding, Findings
from analysis.studies.memory.formula import predicted_live_bytes, predicted_peak_bytes, weights_bytes
from analysis.text import quantity

MIB, GB = 2**20, 1e9
LARGE = 16 * MIB
"""Peaks from which on what libraries and the allocator hold is small beside them."""
HALF_WAY = 1.5
"""An exponent between linear and quadratic."""
SHAPE = ["checkpoint", "num_tokens", "token_dim", "channels", "transformer_layers", "classes", "heads"]
CASE = [*SHAPE, "attention", "decoder", "batch_size", "window", "dtype"]
AFHQ = {"num_tokens": 1024, "token_dim": 192, "channels": 768, "heads": 12, "transformer_layers": 8, "num_layers": 8}
"""The shape of the published AFHQ checkpoint, 8-768-8-8 (arXiv 2412.06329), which the paper decodes at `AFHQ_BATCH`."""
AFHQ_BATCH = 16


def findings(runs: Runs) -> Findings:
    """Counted bytes with the formula's, measured peaks with the formula's, exponents, and the paper's shape."""
    rows = runs.table("memory_scaling")
    rows = rows[rows["status"] == "ok"]
    rows = rows.assign(predicted_bytes=predicted_live_bytes(rows), predicted_peak=predicted_peak_bytes(rows))
    counted = rows.drop_duplicates(CASE)[
        [*CASE, "weights_bytes", "cache_bytes", "live_bytes", "predicted_bytes"]
    ].sort_values(["attention", "checkpoint", "batch_size", "decoder"])
    counted = counted.assign(error=counted["predicted_bytes"] / counted["live_bytes"] - 1).reset_index(drop=True)
    peaks = rows[[*SHAPE, "attention", "decoder", "batch_size", "method", "peak_bytes", "live_bytes", "predicted_peak"]]
    peaks = peaks.assign(
        error=peaks["predicted_peak"] / peaks["peak_bytes"] - 1,
        beyond_live=peaks["peak_bytes"] / peaks["live_bytes"] - 1,
        large=peaks["peak_bytes"] >= LARGE,
    ).sort_values(["method", "attention", "checkpoint", "batch_size", "decoder"])
    grown, paper = exponents(counted), paper_shape()
    return Findings(
        tables={
            "counted": counted,
            "formula-error": errors(counted, "error", ["attention", "decoder"]),
            "exponents": grown,
            "paper-shape": paper,
        },
        timed={
            "peaks": peaks.reset_index(drop=True),
            "peak-error": errors(peaks[peaks["large"]], "error", ["method", "decoder"]),
        },
        figures={"scaling": draw(counted), "formula-timed": draw_formula(peaks)},
        values={
            "worst": float(counted["error"].abs().max()),
            "typical": float(counted["error"].abs().median()),
            "cases": len(counted),
            "large_mib": LARGE / MIB,
            "by_length": grown.query("axis == 'num_tokens' and measure == 'live_bytes'"),
            "by_batch": grown.query("axis == 'batch_size' and measure == 'live_bytes' and attention == 'fused'"),
            "batch": AFHQ_BATCH,
            "equal_depth": equal_depth(),
            "paper": {row["decoder"]: row["value"] for row in published_memory().to_dict("records")},
        },
        claims=_claims(counted, grown, paper),
    )


def errors(frame: pd.DataFrame, column: str, by: list[str]) -> pd.DataFrame:
    """Median and largest relative error of the formula, without sign, and the rows they rest on."""
    sizes = frame.assign(size=frame[column].abs()).groupby(by, as_index=False)
    return sizes.agg(cases=("size", "size"), median=("size", "median"), largest=("size", "max"))


def exponents(counted: pd.DataFrame) -> pd.DataFrame:
    """How counted bytes grow: p in batch^p at each length, and in L^p among flows of one network at each batch."""
    found = []
    one = counted[(counted["channels"] == 128) & (counted["transformer_layers"] == 2) & (counted["classes"] == 0)]
    one = one[one["checkpoint"].str.startswith("random-4-")]
    for axis, held in (("batch_size", "num_tokens"), ("num_tokens", "batch_size")):
        for (attention, decoder, value), part in one.groupby(["attention", "decoder", held]):
            if part[axis].nunique() < 3:
                continue
            for measure in ("live_bytes", "cache_bytes"):
                fit = power(part[axis].to_numpy(), part[measure].to_numpy())
                if fit.points:
                    last = part.sort_values(axis).iloc[-2:]
                    local = np.diff(np.log(last[measure]))[0] / np.diff(np.log(last[axis]))[0]
                    found.append(
                        {"axis": axis, "held": held, "at": value, "attention": attention, "decoder": decoder,
                         "measure": measure, "exponent": fit.value, "at_the_end": float(local), "sizes": fit.points}
                    )  # fmt: skip
    return pd.DataFrame(found)


def paper_shape() -> pd.DataFrame:
    """The formula at the published AFHQ checkpoint: weights, cache, live tensors and their sum."""
    length = AFHQ["num_tokens"]
    cache = 4 * 2 * AFHQ["transformer_layers"] * length * AFHQ["channels"] * AFHQ_BATCH
    cases = [(kernel, decoder) for kernel in ("fused", "math") for decoder in ("sequential", "ujd", "sejd")]
    rows = pd.DataFrame(cases, columns=["attention", "decoder"]).assign(
        **AFHQ, batch_size=AFHQ_BATCH, classes=3, dtype="float32"
    )
    rows = rows.assign(
        window=np.where(rows["decoder"] == "sequential", 1, length - 1),
        cache_bytes=np.where(rows["decoder"] == "ujd", 0, cache),
    )
    weights = weights_bytes(AFHQ["num_layers"], AFHQ["transformer_layers"], AFHQ["channels"], length, AFHQ["token_dim"])
    live = predicted_live_bytes(rows)
    return pd.DataFrame(
        {
            "attention": rows["attention"],
            "decoder": rows["decoder"],
            "weights_gb": weights / GB,
            "cache_gb": rows["cache_bytes"] / GB,
            "live_gb": live / GB,
            "total_gb": (live + weights) / GB,
        }
    )


def published_memory() -> pd.DataFrame:
    """What the paper's Sec. D says, in GB, by decoder."""
    rows = published()
    return rows[rows["quantity"] == "memory_gb"]


def equal_depth() -> int:
    """The least transformer layers at which Jacobi iteration of a layer needs less than its cache."""
    shape = pd.DataFrame([AFHQ | {"batch_size": 1, "classes": 0, "dtype": "float32", "attention": "fused"}] * 32)
    shape = shape.assign(transformer_layers=np.arange(1, 33))
    length = AFHQ["num_tokens"]
    jacobi = predicted_live_bytes(shape.assign(window=length - 1, cache_bytes=0))
    cached = predicted_live_bytes(shape.assign(window=1, cache_bytes=1))
    return int(shape["transformer_layers"][jacobi < cached].min())


def _claims(counted: pd.DataFrame, grown: pd.DataFrame, paper: pd.DataFrame) -> tuple[Finding, ...]:
    found = []
    lengths = grown[(grown["axis"] == "num_tokens") & (grown["measure"] == "live_bytes")]
    for attention, part in lengths.groupby("attention"):
        words = ", ".join(
            f"{row.decoder} L^{row.at_the_end:.2f}" for row in part.itertuples() if row.decoder != "gs-jacobi"
        )
        quadratic = bool((part.loc[part["decoder"] == "ujd", "at_the_end"] > HALF_WAY).all())
        found.append(
            Finding(
                claim="memory-order",
                flow=f"random weights, attention {attention}",
                measured=f"between the two longest sequences the tensors alive grow as {words}",
                agrees=quadratic,
                criterion=f"UJD's grow faster than L^{HALF_WAY:g} between the two longest sequences",
            )
        )
    deep = counted[(counted["attention"] == "fused") & counted["decoder"].isin(["sequential", "sejd", "ujd"])]
    deep = deep[deep["transformer_layers"] == deep["transformer_layers"].max()]
    deep = deep[deep["batch_size"] == deep["batch_size"].max()].set_index("decoder")["live_bytes"] / MIB
    fused = paper[paper["attention"] == "fused"].set_index("decoder")["total_gb"]
    found.append(
        Finding(
            claim="memory-less",
            flow="random weights, 8 transformer layers in each" if not deep.empty else "none",
            measured=(
                f"SeJD {quantity(deep['sejd'])} MiB, sequential {quantity(deep['sequential'])}, "
                f"UJD {quantity(deep['ujd'])}, weights apart: SeJD's sequential layer holds the same cache; "
                "the formula gives the paper's flow "
                f"{fused['sejd']:.1f} GB and {fused['sequential']:.1f} GB, weights included"
            ),
            agrees=bool(deep["sejd"] < 0.99 * deep["sequential"]),
            criterion="SeJD needs at least 1 % less than sequential decoding",
        )
    )
    return tuple(found)


def draw(counted: pd.DataFrame) -> Figure:
    """Counted bytes per sample against length and batch; the formula as a line through the counts."""
    base = counted[counted["checkpoint"].str.startswith("random-4-128-3-2@")]
    by_length = base[base["batch_size"] == _common(base, "num_tokens", "batch_size")]
    by_batch = base[(base["attention"] == "fused") & (base["num_tokens"] == _common(base, "batch_size", "num_tokens"))]
    with theme():
        fig = figure(8.8, 3.9)
        left, right = fig.subplots(1, 2)
        handles: dict[str, object] = {}
        for ax, rows, axis in ((left, by_length, "num_tokens"), (right, by_batch, "batch_size")):
            for (decoder, attention), part in rows.groupby(["decoder", "attention"], sort=False):
                part, style = part.sort_values(axis), decoder_style(str(decoder))
                dashed = attention == "math"
                if dashed and decoder == "sequential":
                    continue  # the same line: one token has one row of scores
                ax.plot(part[axis], part["predicted_bytes"] / MIB, color=style.color, ls=":" if dashed else "-", lw=1.2)
                (handle,) = ax.plot(
                    part[axis], part["live_bytes"] / MIB, color=style.color, marker=style.marker, ls="none",
                    mfc="none" if dashed else style.color, ms=9 if decoder == "sejd" else 5.5,
                )  # fmt: skip
                handles.setdefault(f"{decoder}{', scores kept (math)' if dashed else ''}", handle)
            log_axis(ax.xaxis, sorted(rows[axis].unique()), base=2)
            log_axis(ax.yaxis, base=2)
            finish(ax)
        left.set(
            xlabel="sequence length L", ylabel="tensors, MiB", title=f"alive, batch {by_length['batch_size'].iloc[0]}"
        )
        right.set(xlabel="batch size", ylabel="tensors, MiB", title=f"alive, L = {by_batch['num_tokens'].iloc[0]}")
        legend_below(fig, handles)
    return fig


def draw_formula(peaks: pd.DataFrame) -> Figure:
    """Measured peak against the formula's, a panel per method."""
    methods = sorted(peaks["method"].unique())
    with theme():
        fig = figure(4.6 * len(methods), 4.2)
        handles: dict[str, object] = {}
        for ax, method in zip(fig.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
            part = peaks[(peaks["method"] == method) & (peaks["peak_bytes"] > 0)]
            limits = [part[["predicted_peak", "peak_bytes"]].min().min() / MIB, part["peak_bytes"].max() / MIB * 1.2]
            ax.plot(limits, limits, color=INK, lw=0.8)
            for (decoder, attention), rows in part.groupby(["decoder", "attention"], sort=False):
                style = decoder_style(str(decoder))
                filled = "none" if attention == "math" else style.color
                (handle,) = ax.plot(
                    rows["predicted_peak"] / MIB, rows["peak_bytes"] / MIB, color=style.color, marker=style.marker,
                    mfc=filled, ls="none",
                )  # fmt: skip
                handles.setdefault(f"{decoder}{', scores kept (math)' if attention == 'math' else ''}", handle)
            log_axis(ax.xaxis, base=2)
            log_axis(ax.yaxis, base=2)
            ax.set(xlabel="formula, MiB", ylabel="measured, MiB", title=f"peak of a decode ({method})")
            finish(ax)
        legend_below(fig, handles)
    return fig


def _common(rows: pd.DataFrame, axis: str, held: str) -> int:
    """The value of `held` at which most values of `axis` were counted."""
    return int(lowest(rows.groupby(held)[axis].nunique().mul(-1).reset_index(name="n"), "n")[held])
