"""Memory against batch and sequence length: what is counted, what is measured, and the formula for both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import INK, decoder_style, log_axis, panels
from analysis.load import Runs
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
ORDER = ["attention", "checkpoint", "batch_size", "decoder"]
AFHQ = {"num_tokens": 1024, "token_dim": 192, "channels": 768, "heads": 12, "transformer_layers": 8, "num_layers": 8}
"""The shape of the published AFHQ checkpoint, 8-768-8-8 (arXiv 2412.06329), which the paper decodes at `AFHQ_BATCH`."""
AFHQ_BATCH = 16


def findings(runs: Runs) -> Findings:
    """Counted bytes with the formula's, measured peaks with the formula's, exponents, and the paper's shape."""
    rows = runs.table("memory_scaling")
    rows = rows[rows["status"] == "ok"]
    rows = rows.assign(predicted_bytes=predicted_live_bytes(rows), predicted_peak=predicted_peak_bytes(rows))
    columns = [*CASE, "weights_bytes", "cache_bytes", "live_bytes", "predicted_bytes"]
    counted = rows.drop_duplicates(CASE)[columns].sort_values(ORDER, ignore_index=True)
    counted = counted.assign(error=counted["predicted_bytes"] / counted["live_bytes"] - 1)
    peaks = rows[[*SHAPE, "attention", "decoder", "batch_size", "method", "peak_bytes", "live_bytes", "predicted_peak"]]
    peaks = peaks.sort_values(["method", *ORDER], ignore_index=True).assign(
        error=lambda rows: rows["predicted_peak"] / rows["peak_bytes"] - 1,
        beyond_live=lambda rows: rows["peak_bytes"] / rows["live_bytes"] - 1,
        large=lambda rows: rows["peak_bytes"] >= LARGE,
    )
    grown, paper = exponents(counted), paper_shape()
    return Findings(
        tables={
            "counted": counted,
            "formula-error": errors(counted, ["attention", "decoder"]),
            "exponents": grown,
            "paper-shape": paper,
        },
        timed={"peaks": peaks, "peak-error": errors(peaks[peaks["large"]], ["method", "decoder"])},
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
            "paper": published().query("quantity == 'memory_gb'").set_index("decoder")["value"].to_dict(),
        },
        claims=_claims(counted, grown, paper),
    )


def errors(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Median and largest relative error of the formula, without sign, and the rows they rest on."""
    sizes = frame.assign(size=frame["error"].abs()).groupby(by, as_index=False)
    return sizes.agg(cases=("size", "size"), median=("size", "median"), largest=("size", "max"))


def exponents(counted: pd.DataFrame) -> pd.DataFrame:
    """How counted bytes grow: p in batch^p at each length, and in L^p among flows of one network at each batch."""
    found = []
    one = counted[counted["checkpoint"].str.startswith("random-4-") & (counted["channels"] == 128)]
    one = one[(one["transformer_layers"] == 2) & (one["classes"] == 0)]
    for axis, held in (("batch_size", "num_tokens"), ("num_tokens", "batch_size")):
        for (attention, decoder, value), part in one.groupby(["attention", "decoder", held]):
            if part[axis].nunique() < 3:
                continue
            for measure in ("live_bytes", "cache_bytes"):
                fit = power(part[axis].to_numpy(), part[measure].to_numpy())
                if fit.points:
                    last = part.sort_values(axis)[[axis, measure]].iloc[-2:].map(np.log).diff().iloc[-1]
                    slope = float(last[measure] / last[axis])
                    found.append((axis, held, value, attention, decoder, measure, fit.value, slope, fit.points))
    columns = ["axis", "held", "at", "attention", "decoder", "measure", "exponent", "at_the_end", "sizes"]
    return pd.DataFrame(found, columns=columns)


def paper_shape() -> pd.DataFrame:
    """The formula at the published AFHQ checkpoint: weights, cache, live tensors and their sum."""
    length = AFHQ["num_tokens"]
    cache = 4 * 2 * AFHQ["transformer_layers"] * length * AFHQ["channels"] * AFHQ_BATCH
    cases = [(kernel, decoder) for kernel in ("fused", "math") for decoder in ("sequential", "ujd", "sejd")]
    rows = pd.DataFrame(cases, columns=["attention", "decoder"])
    rows = rows.assign(
        **AFHQ, batch_size=AFHQ_BATCH, classes=3, dtype="float32",
        window=np.where(rows["decoder"] == "sequential", 1, length - 1),
        cache_bytes=np.where(rows["decoder"] == "ujd", 0, cache),
    )  # fmt: skip
    weights = weights_bytes(AFHQ["num_layers"], AFHQ["transformer_layers"], AFHQ["channels"], length, AFHQ["token_dim"])
    found = rows[["attention", "decoder"]].assign(weights_gb=weights / GB, cache_gb=rows["cache_bytes"] / GB)
    live = predicted_live_bytes(rows)
    return found.assign(live_gb=live / GB, total_gb=(live + weights) / GB)


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
        ends = part.set_index("decoder")["at_the_end"].drop("gs-jacobi", errors="ignore")
        words = ", ".join(f"{decoder} L^{exponent:.2f}" for decoder, exponent in ends.items())
        found.append(
            Finding(
                "memory-order",
                f"random weights, attention {attention}",
                f"between the two longest sequences the tensors alive grow as {words}",
                bool((part.loc[part["decoder"].isin(["sequential", "ujd"]), "at_the_end"] > HALF_WAY).all()),
                f"both sequential's and UJD's grow faster than L^{HALF_WAY:g} between the two longest sequences",
            )
        )
    deep = counted[(counted["attention"] == "fused") & counted["decoder"].isin(["sequential", "sejd", "ujd"])]
    deep = deep[deep["transformer_layers"] == deep["transformer_layers"].max()]
    deep = deep[deep["batch_size"] == deep["batch_size"].max()].set_index("decoder")["live_bytes"] / MIB
    fused = paper[paper["attention"] == "fused"].set_index("decoder")["total_gb"]
    less = Finding(
        "memory-less",
        "random weights, 8 transformer layers in each",
        f"SeJD {quantity(deep['sejd'])} MiB, sequential {quantity(deep['sequential'])}, "
        f"UJD {quantity(deep['ujd'])}, weights apart: SeJD's sequential layer holds the same cache; "
        f"the formula gives the paper's flow {fused['sejd']:.1f} GB and {fused['sequential']:.1f} GB, weights included",
        bool(deep["sejd"] < 0.99 * deep["sequential"]),
        "SeJD needs at least 1 % less than sequential decoding",
    )
    return (*found, less)


def draw(counted: pd.DataFrame) -> Figure:
    """Counted bytes per sample against length and batch; the formula as a line through the counts."""
    base = counted[counted["checkpoint"].str.startswith("random-4-128-3-2@")]
    by_length = base[base["batch_size"] == _common(base, "num_tokens", "batch_size")]
    by_batch = base[(base["attention"] == "fused") & (base["num_tokens"] == _common(base, "batch_size", "num_tokens"))]
    with panels(8.8, 3.9, 2) as (fig, axes, handles):
        for ax, rows, axis in zip(axes, (by_length, by_batch), ("num_tokens", "batch_size"), strict=True):
            for (decoder, attention), part in rows.groupby(["decoder", "attention"], sort=False):
                part = part.sort_values(axis)
                name, style = _case(str(decoder), str(attention))
                if attention == "math" and decoder == "sequential":
                    continue  # the same line: one token has one row of scores
                dashes = ":" if attention == "math" else "-"
                ax.plot(part[axis], part["predicted_bytes"] / MIB, color=style["color"], ls=dashes, lw=1.2)
                size = 9 if decoder == "sejd" else 5.5
                (handles[name],) = ax.plot(part[axis], part["live_bytes"] / MIB, **style, ms=size)
            log_axis(ax.xaxis, sorted(rows[axis].unique()), base=2)
            log_axis(ax.yaxis, base=2)
            ax.set_ylabel("tensors, MiB")
        axes[0].set(xlabel="sequence length L", title=f"alive, batch {by_length['batch_size'].iloc[0]}")
        axes[1].set(xlabel="batch size", title=f"alive, L = {by_batch['num_tokens'].iloc[0]}")
    return fig


def _case(decoder: str, attention: str) -> tuple[str, dict[str, Any]]:
    style, kept = decoder_style(decoder), attention == "math"
    marks = {"color": style.color, "marker": style.marker, "ls": "none", "mfc": "none" if kept else style.color}
    return f"{decoder}{', scores kept (math)' if kept else ''}", marks


def draw_formula(peaks: pd.DataFrame) -> Figure:
    """Measured peak against the formula's, a panel per method."""
    groups = list(peaks.groupby("method"))
    with panels(4.6 * len(groups), 4.2, len(groups)) as (fig, axes, handles):
        for ax, (method, part) in zip(axes, groups, strict=True):
            part = part[part["peak_bytes"] > 0]
            limits = [part[["predicted_peak", "peak_bytes"]].min().min() / MIB, part["peak_bytes"].max() / MIB * 1.2]
            ax.plot(limits, limits, color=INK, lw=0.8)
            for (decoder, attention), rows in part.groupby(["decoder", "attention"], sort=False):
                name, style = _case(str(decoder), str(attention))
                (handles[name],) = ax.plot(rows["predicted_peak"] / MIB, rows["peak_bytes"] / MIB, **style)
            log_axis(ax.xaxis, base=2)
            log_axis(ax.yaxis, base=2)
            ax.set(xlabel="formula, MiB", ylabel="measured, MiB", title=f"peak of a decode ({method})")
    return fig


def _common(rows: pd.DataFrame, axis: str, held: str) -> int:
    counts = rows.groupby(held)[axis].nunique()
    return int(counts.index.to_numpy()[counts.to_numpy().argmax()])
