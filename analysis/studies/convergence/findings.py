"""How Jacobi iteration of each layer converges, from which guess, and why (Prop. 3.1, 3.2, Fig. 4 and 6)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.figures import guesses, jacobian_powers
from analysis.figures.plot import Omitted
from analysis.figures.redundancy import named
from analysis.load import PAPER_TAU, Runs
from analysis.regression import CONFIDENCE, order_of_convergence
from analysis.studies.base import Finding, Findings
from analysis.studies.convergence.figures import draw_bounds, draw_orders
from analysis.text import listing, quantity

GOALS = (0.1, 0.01, 0.001)
"""RMS errors, in the layer's own units, that iterations are counted to."""
TAUS = (0.1, 0.3, 0.5, 1.0, 2.0)
PAPER_GUESSES = ("zeros", "normal", "input")
"""Those of the paper's Figure 6."""
LITTLE = 0.1
"""Share of the iterations of all layers that makes "little difference"."""
HALVES = 0.5
"""The factor on the error falls at least to this share of what it was, or convergence is linear in practice."""
ROUNDING = 1e-12
"""Errors below this share of the largest are left out of fits: float64's rounding is near."""
FROM = "zeros"
"""The paper's own guess (Algorithm 1)."""


def findings(runs: Runs) -> Findings:
    """Errors and residuals by guess, orders, exact ends, and norms of the Jacobian's powers."""
    curves, samples = guesses.data(runs), guesses.samples(runs)
    flows = curves["flow"].unique().tolist()
    iterations, stops = _iterations(curves), _stops(samples)
    orders, ends, bits, bounds = _orders(samples), _ends(runs, samples), _last_bits(runs), _bounds(samples)
    figures = {f"guesses-{flow}": guesses.draw(curves[curves["flow"] == flow]) for flow in flows}
    figures |= {"orders": draw_orders(orders), "residuals": draw_bounds(bounds)}
    claims = [claim for flow in flows for claim in _claims(flow, iterations, orders, ends, bits)]
    tables = {"iterations": iterations, "stops": stops, "orders": orders, "ends": ends, "bounds": bounds}
    tables["taus"] = _taus(stops)
    try:
        powers = jacobian_powers.data(runs)
    except Omitted:
        pass
    else:
        tables |= {"powers": jacobian_powers.contraction(powers), "norms": powers}
        figures |= {f"powers-{flow}": jacobian_powers.draw(rows) for flow, rows in powers.groupby("flow")}
        claims += _nilpotent(tables["powers"])
    return Findings(
        tables=tables,
        rounded={"last-bits": bits},
        figures=figures,
        values={
            "flows": flows,
            "ends": ends.merge(bits, on=["flow", "layer"]),
            "guesses": guesses.NAMES,
            "tau": PAPER_TAU,
            "rounding": ROUNDING,
            "spread": _spread(iterations),
            "powers": [name for name in figures if name.startswith("powers-")],
            "contraction": "powers" in tables,
            "stopped": stops[(stops["tau"] == PAPER_TAU) & (stops["initial"] == FROM)],
        },
        claims=tuple(claims),
    )


def _iterations(curves: pd.DataFrame) -> pd.DataFrame:
    frames = [guesses.iterations_to(curves, goal).assign(goal=goal) for goal in GOALS]
    wide = pd.concat(frames).pivot(index=["flow", "goal", "layer"], columns="initial", values="iterations")
    wide = wide[guesses.ordered(pd.Series(wide.columns))].astype("Int64")
    known = [name for name in PAPER_GUESSES if name in wide]
    return wide.assign(spread=wide[known].max(axis=1) - wide[known].min(axis=1)).reset_index().rename_axis(columns=None)


def _spread(iterations: pd.DataFrame) -> pd.DataFrame:
    grouped = iterations.groupby(["flow", "goal"])
    totals = grouped[[name for name in PAPER_GUESSES if name in iterations]].sum()
    found = grouped["spread"].agg(largest="max", median="median")
    found = found.assign(best=totals.idxmin(axis=1), best_total=totals.min(axis=1))
    found = found.assign(worst=totals.idxmax(axis=1), worst_total=totals.max(axis=1))
    if "fitted" in iterations:
        found["fitted_total"] = grouped["fitted"].sum(min_count=1)
    return found.reset_index()


def _stops(samples: pd.DataFrame) -> pd.DataFrame:
    frames = []
    for tau in TAUS:
        below = samples[samples["residual"] < tau]
        first = below.drop_duplicates([*guesses.KEYS, "cell_id", "sample"])  # rows are in the order of iterations
        grouped = first.assign(over=first["error_inf"] / tau).groupby(guesses.KEYS, as_index=False)
        found = grouped.agg(
            iterations=("iteration", "median"),
            error_rms=("error_rms", "median"),
            error_inf=("error_inf", "median"),
            over_tau=("over", "median"),
            over_tau_max=("over", "max"),
            samples=("over", "size"),
            above=("over", lambda over: float((over > 1).mean())),
        )
        frames.append(found.assign(tau=tau))
    return pd.concat(frames).sort_values(["flow", "initial", "layer", "tau"], ignore_index=True)


def _taus(stops: pd.DataFrame) -> pd.DataFrame:
    own = stops[stops["initial"] == FROM].assign(over=lambda rows: rows["above"] * rows["samples"])
    grouped = own.groupby(["flow", "tau"])
    first = own[own["layer"] == 1].set_index(["flow", "tau"])
    others = own[own["layer"] > 1].groupby(["flow", "tau"])
    return pd.DataFrame(
        {
            "iterations_layer_1": first["iterations"],
            "error_layer_1": first["error_rms"],
            "iterations_others": others["iterations"].median(),
            "iterations_slowest": others["iterations"].max(),
            "error_others": others["error_rms"].median(),
            "above": grouped["over"].sum() / grouped["samples"].sum(),
            "worst": grouped["over_tau_max"].max(),
        }
    ).reset_index()


def _bounds(samples: pd.DataFrame) -> pd.DataFrame:
    rows = samples[(samples["initial"] == FROM) & (samples["residual"] > 1e-8) & (samples["iteration"] > 0)]
    rows = rows.assign(ratio=rows["error_inf"] / rows["residual"])
    grouped = rows.groupby(["flow", "layer", "iteration"], as_index=False)
    return grouped.agg(median=("ratio", "median"), largest=("ratio", "max"), samples=("ratio", "size"))


def _orders(samples: pd.DataFrame) -> pd.DataFrame:
    """Per flow, layer and guess: order of convergence, its interval over samples, and the factors early and late."""
    from scipy.stats import t

    rows = []
    for key, group in samples.groupby(guesses.KEYS):
        fits, early, late = [], [], []
        for _, curve in group.groupby(["cell_id", "sample"]):
            errors = curve["error_rms"].to_numpy()
            errors = errors[errors > ROUNDING * errors.max()]
            fits.append(order_of_convergence([errors], floor=ROUNDING).value)
            if len(errors) > 6:
                early.append((errors[3] / errors[0]) ** (1 / 3))
                late.append((errors[-1] / errors[-4]) ** (1 / 3))
        known = np.array([fit for fit in fits if np.isfinite(fit)])
        mean = known.mean() if len(known) else np.nan
        half = np.nan
        if len(known) > 1:
            half = t.ppf((1 + CONFIDENCE) / 2, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5
        factors = [np.median(found) if found else np.nan for found in (early, late)]
        rows.append((*key, mean, mean - half, mean + half, len(known), *factors))
    names = ["order", "order_low", "order_high", "samples", "factor_early", "factor_late"]
    return pd.DataFrame(rows, columns=[*guesses.KEYS, *names])


def _ends(runs: Runs, samples: pd.DataFrame) -> pd.DataFrame:
    grouped = named(runs.table("fixed_points")).groupby(["flow", "layer"])
    near = samples[samples["error_rms"] <= ROUNDING].drop_duplicates([*guesses.KEYS, "cell_id", "sample"])
    settled = near.groupby(["flow", "layer"])["iteration"]
    return pd.DataFrame(
        {
            "to_rounding": settled.median(),
            "to_rounding_most": settled.max(),
            "most_possible": grouped["num_tokens"].first() - 1,
            "latest_token": grouped["latest_token"].max(),
            "decodes": grouped.size(),
            "cut_short": grouped["iterations"].apply(lambda counts: int(counts.isna().sum())),
            "unsettled": grouped.size() - settled.size().reindex(grouped.size().index, fill_value=0),
        }
    ).reset_index()


def _last_bits(runs: Runs) -> pd.DataFrame:
    grouped = named(runs.table("fixed_points")).groupby(["flow", "layer"])
    bits = {"iterations_median": ("iterations", "median"), "iterations_most": ("iterations", "max")}
    return grouped.agg(**bits, error_inf=("error_inf", "max")).reset_index()


def _claims(
    flow: str, iterations: pd.DataFrame, orders: pd.DataFrame, ends: pd.DataFrame, bits: pd.DataFrame
) -> list[Finding]:
    own = orders[orders["flow"] == flow].dropna(subset=["order_low"])
    above = int((own["order_low"] > 1).sum())
    end, bit = ends[ends["flow"] == flow], bits[bits["flow"] == flow]
    cut = end.loc[(end["cut_short"] > 0) & (end["unsettled"] > 0), "layer"]  # their last factor is not known
    paper = own[(own["initial"] == FROM) & ~own["layer"].isin(cut)].dropna(subset=["factor_late"])
    paper = paper.assign(falls=paper["factor_late"] / paper["factor_early"])
    linear = [str(layer) for layer in paper.loc[paper["falls"] > HALVES, "layer"]]
    most = int(end["most_possible"].iloc[0])
    late = int((bit["iterations_most"] > most).sum())
    steps = iterations[(iterations["flow"] == flow) & (iterations["goal"] == GOALS[1])]
    known = [name for name in PAPER_GUESSES if name in steps]
    totals = steps[known].sum()
    first, others = steps[steps["layer"] == 1][FROM], steps[steps["layer"] > 1][FROM]
    own_guess = steps["fitted"] if "fitted" in steps else pd.Series([pd.NA])
    fitted = f", {int(own_guess.sum())} from the fitted guess" if own_guess.notna().all() else ""
    found = []
    if len(paper):
        found.append(
            Finding(
                "superlinear",
                flow,
                f"the fitted order runs from {quantity(own['order'].min())} to {quantity(own['order'].max())} over "
                f"layers and guesses, its 95 % interval above 1 in {above} of {len(own)}; from zeros an iteration's "
                f"factor on the error falls to {quantity(paper['falls'].min())} to {quantity(paper['falls'].max())} of "
                "what it was"
                + (f", in layer {listing(linear)} by less than half: there it is linear in practice" if linear else "")
                + (f"; cut short in layer {listing([str(layer) for layer in cut])}" if len(cut) else ""),
                False if linear else None if len(cut) else True,
                "superlinear means that an iteration's factor on the error falls towards 0: from zeros, as the paper "
                "starts, it has halved in every layer from the first three iterations to the last three with an error "
                f"above {ROUNDING:g} of the largest",
            )
        )
    if not end["cut_short"].any():
        found.append(
            Finding(
                "finite",
                flow,
                f"in float64 a bit still changes after L − 1 = {most} iterations in {late} of {len(bit)} layers, and a "
                f"token settles later than Prop. 3.2 says in {int((end['latest_token'] > 0).sum())} "
                f"({int(end['decodes'].sum())} decodes of single layers); the fixed point is within "
                f"{_power_of_ten(bit['error_inf'].max())} of the sequential output",
                bool(late == 0 and (end["latest_token"] <= 0).all()),
                "bitwise: the iterate stops changing within L − 1 iterations, token l within l, from every guess",
            )
        )
    if len(known) and steps[known].notna().all(axis=None):
        found.append(
            Finding(
                "initial-guess",
                flow,
                f"to an RMS error of {GOALS[1]:g} the guesses differ by up to {int(steps['spread'].max())} iterations "
                "in a layer; in all layers together it takes "
                + ", ".join(f"{int(totals[name])} from {guesses.NAMES[name]}" for name in known)
                + fitted,
                bool(totals.max() <= (1 + LITTLE) * totals.min()),
                f"in all layers together the worst of the three takes at most {LITTLE:.0%} more than the best",
            )
        )
    if steps[FROM].notna().all():
        found.append(
            Finding(
                "first-layer-iterations",
                flow,
                f"from zeros to an RMS error of {GOALS[1]:g} layer 1 takes {int(first.iloc[0])} iterations, the "
                f"slowest other layer {int(others.max())}",
                bool(first.iloc[0] > others.max()),
                "layer 1 takes more iterations than every other",
            )
        )
    return found


def _power_of_ten(bound: float) -> str:
    """The next power of ten above a number: all that is to be said of rounding.

    >>> _power_of_ten(2.4e-15)
    '1e-14'
    """
    return f"{10 ** np.ceil(np.log10(bound)):.0e}" if bound > 0 else "0"


def _nilpotent(powers: pd.DataFrame) -> list[Finding]:
    return [
        Finding(
            "nilpotent",
            str(flow),
            f"the spectral norm of J lies between {quantity(rows['norm'].min())} and "
            f"{quantity(rows['norm'].max())}, so one iteration need not contract; that of J^t falls below 1 by t = "
            f"{int(rows['first_below_one'].max())} and is exactly 0 at t = {int(rows['vanishes_at'].max())} "
            f"(L = {int(rows['num_tokens'].iloc[0])})",
            bool((rows["vanishes_at"] <= rows["num_tokens"]).all()),
            "the L-th power of the Jacobian, by autograd in float64, is exactly 0 in every layer and sample",
        )
        for flow, rows in powers.groupby("flow")
    ]
