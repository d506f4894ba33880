"""Why Jacobi decoding of every layer loses on large images: cost of an iteration, their number, and a model of both."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.load import Runs
from analysis.studies.base import Finding, Findings
from analysis.studies.cells import rounds, speed, with_interval
from analysis.studies.ujd_loss.cost_model import (
    NETWORK,
    PREDICTIONS,
    SHAPE,
    CostModel,
    median_costs,
    predicted_speedup,
    relative_errors,
)
from analysis.studies.ujd_loss.figures import draw_frontier, draw_iterations, draw_speedups
from analysis.studies.ujd_loss.published_model import implied
from analysis.text import listing

RANDOM = "random-"
"""What the names of flows with random weights begin with: the model is fitted to them and tested on the others."""
LENGTHS = [64, 144, 256, 576, 1024, 2304, 4096]
PAPER_LOSES = "AFHQ"
PAPER_LENGTH = 1024
"""Tokens of its images there."""
SHARE_MARGIN = 0.1


def findings(runs: Runs) -> Findings:
    """Iterations, what the paper's numbers imply, costs, the model's test, and the frontier."""
    counts = iterations(runs.table("couplings"))
    of_random = counts["checkpoint"].str.startswith(RANDOM)
    trained, random = counts[~of_random], counts[of_random]
    paper, strength = implied(), dependency(runs)
    costs = median_costs(runs.table("costs"))
    costs = costs.assign(trained=~costs["checkpoint"].str.startswith(RANDOM))
    model = CostModel.fit(costs[~costs["trained"]])
    tested = tested_costs(costs, model)
    cells = predictions(speed(runs), runs, costs, model)
    losing = cells[(cells["decoder"] == "ujd") & (cells["high"] < 1)]
    shortest = int(cells["num_tokens"].min())
    border = break_even(model, sorted(costs["batch_size"].unique()))
    return Findings(
        tables={"iterations": trained, "random-iterations": random, "paper": paper, "dependency": strength},
        timed={
            "costs": tested,
            "cost-errors": cost_errors(tested),
            "speedups": cells,
            "speedup-errors": speedup_errors(cells),
            "frontier": border,
            "rounds": rounds(runs),
            "cost-rounds": runs.table("costs").drop(columns=["cell_id", "run"], errors="ignore"),
        },
        figures={
            "iterations": draw_iterations(random, trained),
            "speedup-timed": draw_speedups(cells),
            "frontier-timed": draw_frontier(border, tested, trained),
        },
        values={
            "afhq": paper[paper["name"] == PAPER_LOSES].to_dict("records")[0],
            "others": paper[paper["name"] != PAPER_LOSES].to_dict("records"),
            "strength": correlation(strength),
            "losing": losing,
            "losing_short": shortest if (losing["num_tokens"] == shortest).any() else None,
            "at_one": random[random["gain"] == 1]["mean"],
            "lengths": random["num_tokens"],
            "by_gain": random[random["converged"]].groupby("gain")["mean"].mean(),
        },
        claims=_claims(cells, paper, random),
    )


def iterations(couplings: pd.DataFrame) -> pd.DataFrame:
    """One row per flow, gain and batch: iterations of layer 1, the mean of the others', and of all."""
    by = ["checkpoint", "image_size", "patch", "num_tokens", "token_dim", "num_layers", "gain", "tau", "batch_size"]
    rows = couplings.assign(
        first=couplings["iterations"].where(couplings["layer"] == 1),
        rest=couplings["iterations"].where(couplings["layer"] > 1),
    )
    found = rows.groupby(by, as_index=False).agg(
        first=("first", "max"), rest=("rest", "mean"), mean=("iterations", "mean"), converged=("converged", "all")
    )
    return found.assign(share=found["mean"] / (found["num_tokens"] - 1))


def dependency(runs: Runs) -> pd.DataFrame:
    """Layer by layer, what leaving the nearest predecessor out does to the output, beside its iterations."""
    probed, counted = runs.table("redundancy"), runs.table("couplings")
    probed_columns, columns = ["checkpoint", "layer", "cosine", "l2_relative"], ["batch_size", "iterations"]
    if probed.empty:
        return pd.DataFrame(columns=[*probed_columns, *columns])
    probed = probed[(probed["scope"] == "layer") & (probed["reading"] == "input") & (probed["o"] == 1)]
    counted = counted[counted["gain"] == 1]
    counted = counted[counted["batch_size"] == counted.groupby("checkpoint")["batch_size"].transform("max")]
    counted = counted[["checkpoint", "layer", *columns]].drop_duplicates(["checkpoint", "layer"])
    return probed[probed_columns].merge(counted, on=["checkpoint", "layer"])


def correlation(strength: pd.DataFrame) -> dict[str, float] | None:
    """Spearman's rank correlation of iterations with the relative change, over all layers; None without any."""
    from scipy.stats import spearmanr

    if len(strength) < 3:
        return None
    found = spearmanr(strength["l2_relative"], strength["iterations"])
    return {"value": float(found.statistic), "p": float(found.pvalue), "layers": len(strength)}


def tested_costs(costs: pd.DataFrame, model: CostModel) -> pd.DataFrame:
    """Every flow and batch, predicted by a model that was not fitted to that flow: a random one is left out in turn."""
    parts = []
    for checkpoint, part in costs.groupby("checkpoint", sort=False):
        trained = bool(part["trained"].iloc[0])
        fitted = model if trained else CostModel.fit(costs[~costs["trained"] & (costs["checkpoint"] != checkpoint)])
        parts.append(part.assign(predicted_c=fitted.c(part)))
    found = pd.concat(parts, ignore_index=True)
    return found.assign(error=relative_errors(found["predicted_c"], found["c"]), break_even=1 / found["c"])


def cost_errors(tested: pd.DataFrame) -> pd.DataFrame:
    """Median and largest error of c: on flows left out of the fit, random ones in turn and trained ones always."""
    kinds = tested.assign(flows=np.where(tested["trained"], "trained", "random weights, each left out in turn"))
    grouped = kinds.groupby("flows", as_index=False)
    return grouped.agg(cases=("error", "size"), median=("error", "median"), largest=("error", "max"))


def predictions(times: pd.DataFrame, runs: Runs, costs: pd.DataFrame, model: CostModel) -> pd.DataFrame:
    """Every timed cell of UJD and SeJD: measured speed-up, and the `PREDICTIONS` of it with their errors."""
    shape = costs.loc[costs["trained"], ["checkpoint", *SHAPE, "c"]].rename(columns={"c": "measured_c"})
    layers = runs.joined("layers").merge(runs.cells[["cell_id", "checkpoint"]], on="cell_id")
    keys = ["checkpoint", "tau", "batch_size"]
    own = layers[layers["decoder"] == "ujd"].assign(
        first=lambda rows: rows["iterations"].where(rows["layer"] == 1),
        rest=lambda rows: rows["iterations"].where(rows["layer"] > 1),
    )
    own = own.groupby(keys, as_index=False)[["first", "rest"]].mean().dropna()
    cells = times[times["decoder"].isin(["ujd", "sejd"])]
    cells = cells.merge(shape.drop(columns="num_tokens"), on=["checkpoint", "batch_size"]).merge(own, on=keys)
    cells = cells.assign(fitted_c=model.c(cells), one_call=1 / (cells["num_tokens"] - 1))
    columns = ["flow", "checkpoint", "decoder", "tau", "batch_size", "num_tokens", "num_layers", "first", "rest"]
    columns += ["measured_c", "fitted_c", "speedup", "low", "high", "coverage", "rounds"]
    for name, c in PREDICTIONS.items():
        cells[name] = [
            predicted_speedup(row["num_layers"], row[c], row["first"], row["rest"], row["decoder"])
            for row in cells.to_dict("records")
        ]
        cells[f"{name}_error"] = relative_errors(cells[name], cells["speedup"])
        columns += [name, f"{name}_error"]
    return cells[columns]


def speedup_errors(cells: pd.DataFrame) -> pd.DataFrame:
    """Median and largest error of each prediction, by decoder."""
    words = ("three measured numbers", "c from the model of cost", "network calls alone")
    rows = []
    for decoder, part in cells.groupby("decoder"):
        for name, prediction in zip(PREDICTIONS, words, strict=True):
            errors = part[f"{name}_error"]
            right = ((part[name] > 1) == (part["speedup"] > 1)).mean()
            rows.append((decoder, prediction, len(part), errors.median(), errors.max(), right))
    return pd.DataFrame(rows, columns=["decoder", "prediction", "cells", "median", "largest", "right_side"])


def break_even(model: CostModel, batches: list[int]) -> pd.DataFrame:
    """Mean iterations per layer above which UJD is slower than sequential, by the model, over L and batch."""
    points = [{"num_tokens": length, "batch_size": batch} for batch in batches for length in LENGTHS]
    shapes = pd.DataFrame([NETWORK | point for point in points])
    c = model.c(shapes)
    return shapes.assign(c=c, break_even=1 / c, steps_per_iteration=c * (shapes["num_tokens"] - 1))


def _claims(cells: pd.DataFrame, paper: pd.DataFrame, random: pd.DataFrame) -> tuple[Finding, ...]:
    found = []
    ujd = cells[(cells["decoder"] == "ujd") & (cells["tau"] == 0.5)]
    for flow, part in ujd.groupby("flow", sort=False):
        rows = part.sort_values("batch_size").to_dict("records")
        long = rows[0]["num_tokens"] >= PAPER_LENGTH
        losing = [bool(row["high"] < 1) for row in rows if pd.notna(row["high"])]
        found.append(
            Finding(
                "ujd-loses",
                f"{flow}, L = {rows[0]['num_tokens']}",
                listing([f"{with_interval(row)} at batch {row['batch_size']}" for row in rows]),
                any(losing) if long and losing else None,
                f"at tau = 0.5 and L = {PAPER_LENGTH} or more UJD is slower than sequential at some batch, with all of "
                "the interval; shorter sequences are not comparable",
                timed=True,
            )
        )
    afhq = paper[paper["name"] == PAPER_LOSES].iloc[0]
    rest = paper[paper["name"] != PAPER_LOSES].to_dict("records")
    others = [f"{row['steps_per_iteration']:.1f} on {row['name']}" for row in rest]
    question = Finding(
        "open-ujd",
        "the paper's own numbers, by the model",
        f"its times imply that an iteration costs {afhq['steps_per_iteration']:.0f} sequential steps on "
        f"{PAPER_LOSES} ({listing(others)}), and that layer 1 takes {afhq['implied_first']:.0f} of its "
        f"{afhq['tokens'] - 1:.0f} iterations where {afhq['break_even_first']:.0f} would be even: cost per "
        "iteration times one slow layer, not the others",
        bool((paper["predicted_share"] - paper["first_share"]).abs().max() < SHARE_MARGIN),
        f"the model puts layer 1's share of SeJD's time within {SHARE_MARGIN:g} of the published one",
    )
    alike = random[(random["gain"] == 1) & random["converged"]]
    length = Finding(
        "open-ujd",
        "sequence length",
        f"flows of random weights take {alike['mean'].min():.3g} to {alike['mean'].max():.3g} iterations per layer "
        f"from L = {alike['num_tokens'].min()} to {alike['num_tokens'].max()}; of trained flows the longest timed has "
        f"L = {cells['num_tokens'].max()}, so whether longer ones depend more strongly is not excluded",
        bool(cells["num_tokens"].max() >= PAPER_LENGTH),
        f"UJD was timed on a trained flow of L = {PAPER_LENGTH} or more",
    )
    return (*found, question, length)
