"""Flows trained to be easy to invert: what each gives up in likelihood, and what it saves in decoding."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import MARKERS, palette, panels
from analysis.load import Runs
from analysis.studies.base import Finding, Findings
from analysis.studies.cells import deterministic
from analysis.text import listing, quantity

PUBLISHED = "published"
LEFT_OUT = 5
"""Predecessors whose worth is told, the paper's largest o, removed from the input."""
WITHIN = 0.01
"""The deviation (RMSE, image units) within which forward passes are compared."""
PER_FLOW = ["dataset", "training", "seed"]
MEASURED = ["bits_per_dim", "fid", "iterations_input", "iterations_zeros", "first_layer", "passes", "passes_sejd"]
MEASURED += ["sejd_passes", "sejd_deviation", "turn_layer_1", "turn_others"]


def findings(runs: Runs) -> Findings:
    """Every flow, every training over its seeds, and each against the published one of the same seed."""
    flows = _flows(runs)
    trainings, layers = _trainings(flows), _named(runs.table("jacobi_iterations"))
    fid = deterministic(runs)
    columns = [*PER_FLOW, "guess", "tau", "layer", "iterations"]
    return Findings(
        tables={
            "flows": flows,
            "trainings": trainings,
            "iterations": layers[columns].sort_values(columns, ignore_index=True),
            "budgets": _named(runs.table("budgets"))[
                [*PER_FLOW, "budget", "allowed", "deviation_rmse", "iterations", "forward_passes", "sejd_passes"]
            ].sort_values([*PER_FLOW, "budget"], ignore_index=True),
        },
        figures={"frontier": draw(trainings)},
        values={
            "o": LEFT_OUT,
            "within": WITHIN,
            "tau": layers["tau"].iloc[0],
            "datasets": trainings["dataset"].unique().tolist(),
            "fid_samples": fid.loc[fid["decoder"] == "sequential", "num_samples"].max(),
            "draws": int(runs.table("likelihoods")["draw"].nunique()),
            "spread": flows["bits_std"].max(),
        },
        claims=tuple(_claim(str(dataset), part) for dataset, part in trainings.groupby("dataset", sort=False)),
    )


def training_of(checkpoint: str, dataset: str) -> tuple[str, int]:
    """How a flow was trained, and its seed, told by the name of its file; a snapshot is named after its share.

    >>> training_of("digits-decode-0.1-s2.safetensors", "digits")
    ('decode-0.1', 2)
    >>> training_of("cifar10-jpeg-5pct.safetensors", "cifar10-jpeg")
    ('published', 0)
    """
    name = checkpoint.removesuffix(".safetensors").removeprefix(dataset)
    seed = re.search(r"-s(\d+)$", name)
    name = re.sub(r"-s\d+$|-\d+pct$", "", name)
    return name.strip("-") or PUBLISHED, int(seed[1]) if seed else 0


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of a probe with the columns of `PER_FLOW` first."""
    pairs = [training_of(*pair) for pair in zip(frame["checkpoint"], frame["dataset"], strict=True)]
    named = frame.assign(training=[one for one, _ in pairs], seed=[seed for _, seed in pairs])
    return named[[*PER_FLOW, *(name for name in named if name not in PER_FLOW)]]


def _flows(runs: Runs) -> pd.DataFrame:
    """One row for each flow."""
    bits, layers, budgets, turns = (
        _named(runs.table(name)) for name in ("likelihoods", "jacobi_iterations", "budgets", "redundancy")
    )
    found = bits.groupby(PER_FLOW)["bits_per_dim"].agg(bits_per_dim="mean", bits_std="std")
    for guess, part in layers.groupby("guess"):
        found[f"iterations_{guess}"] = part.groupby(PER_FLOW)["iterations"].sum()
    first = layers[(layers["guess"] == "input") & (layers["layer"] == 1)]
    found["first_layer"] = first.set_index(PER_FLOW)["iterations"]
    kept = budgets["forward_passes"].where(budgets["deviation_rmse"] <= budgets["allowed"])
    budgets = budgets.assign(forward_passes=kept).set_index(PER_FLOW)
    sejd = budgets[budgets["budget"] == "sejd"]
    found["passes"] = budgets.loc[budgets["budget"] == f"{WITHIN:g}", "forward_passes"]
    found["passes_sejd"] = sejd["forward_passes"]
    found["sejd_passes"], found["sejd_deviation"] = sejd["sejd_passes"], sejd["allowed"]
    turns = turns[(turns["scope"] == "layer") & (turns["reading"] == "input") & (turns["o"] == LEFT_OUT)]
    turns = turns.assign(turn=1 - turns["cosine"])
    found["turn_layer_1"] = turns[turns["layer"] == 1].set_index(PER_FLOW)["turn"]
    found["turn_others"] = turns[turns["layer"] > 1].groupby(PER_FLOW)["turn"].mean()
    exact = deterministic(runs)
    found["fid"] = _named(exact[exact["decoder"] == "sequential"]).set_index(PER_FLOW)["fid"]
    return found.reset_index()[[*PER_FLOW, "bits_std", *MEASURED]]


def _trainings(flows: pd.DataFrame) -> pd.DataFrame:
    """One row for each training: means over seeds, ranges, and the mean difference to the published one by seed."""
    key = ["dataset", "seed"]
    published = flows.loc[flows["training"] == PUBLISHED, [*key, "bits_per_dim", "passes"]]
    pairs = flows.merge(published, on=key, how="left", suffixes=("", "_published"))
    pairs = pairs.assign(
        given_up=pairs["bits_per_dim"] - pairs["bits_per_dim_published"],
        saved=pairs["passes_published"] - pairs["passes"],
    )
    for name in ("passes", "saved"):  # of a training, unless each of its seeds has them
        known = pairs.groupby(["dataset", "training"])[name].transform(lambda values: values.notna().all())
        pairs[name] = pairs[name].where(known)
    grouped = pairs.groupby(["dataset", "training"])
    found = grouped[[*MEASURED, "given_up", "saved"]].mean()
    for name in ("bits_per_dim", "passes", "saved", "given_up"):
        found[f"{name}_low"], found[f"{name}_high"] = grouped[name].min(), grouped[name].max()
    found.insert(0, "seeds", grouped.size())
    found = found.reset_index()
    unbeaten = [
        pd.notna(row["passes"])
        and not ((part["bits_per_dim"] <= row["bits_per_dim"]) & (part["passes"] < row["passes"])).any()
        and not ((part["bits_per_dim"] < row["bits_per_dim"]) & (part["passes"] <= row["passes"])).any()
        for row in found.to_dict("records")
        for part in [found[found["dataset"] == row["dataset"]]]
    ]
    order = ["dataset", "published_first", "bits_per_dim"]
    on_frontier = ["yes" if one else "no" for one in unbeaten]
    found = found.assign(on_frontier=on_frontier, published_first=found["training"] != PUBLISHED)
    return found.sort_values(order, ascending=[False, True, True], ignore_index=True).drop(columns="published_first")


def _claim(dataset: str, trainings: pd.DataFrame) -> Finding:
    """Whether something saves passes with every seed; partly answered where one seed is all there is."""
    base = trainings[trainings["training"] == PUBLISHED].to_dict("records")
    others = trainings[(trainings["training"] != PUBLISHED) & trainings["saved"].notna()]
    criterion = (
        f"a flow that was trained otherwise stays within a deviation of {WITHIN:g} in fewer forward passes with every "
        "seed, and what it gives up in bits per dimension is told; partly answered where there is one seed"
    )
    if not base or others.empty:
        return Finding("open-training", dataset, "no training beside the published one was measured", None, criterion)
    saving = others[others["saved_low"] > 0].sort_values("given_up")
    parts = [
        f"{row['training']} {_word(row['given_up'])} {quantity(abs(row['given_up']), 2)} bits/dim "
        f"and saves {quantity(row['saved'])} ({int(row['seeds'])} seed{'s' if row['seeds'] > 1 else ''})"
        for row in saving.to_dict("records")
    ]
    said = "; ".join(parts) if parts else f"none of {listing(others['training'].tolist())} saves any"
    measured = (
        f"the published training has {quantity(base[0]['bits_per_dim'], 4)} bits/dim and needs "
        f"{quantity(base[0]['passes'])} forward passes; {said}"
    )
    told = saving if len(saving) else others
    agrees = bool(len(saving)) if told["seeds"].max() > 1 else None
    return Finding("open-training", dataset, measured, agrees, criterion)


def _word(given_up: float) -> str:
    return "gives up" if given_up >= 0 else "gains"


def draw(trainings: pd.DataFrame) -> Figure:
    """Forward passes against bits per dimension, a panel per dataset; bars are the range over seeds."""
    names = trainings["training"].unique().tolist()
    looks = dict(zip(names, zip(palette(len(names)), MARKERS * len(names), strict=False), strict=True))
    datasets = trainings["dataset"].unique().tolist()
    with panels(3.6 * len(datasets), 3.4, len(datasets)) as (fig, axes, handles):
        for ax, dataset in zip(axes, datasets, strict=True):
            for row in trainings[trainings["dataset"] == dataset].to_dict("records"):
                color, marker = looks[row["training"]]
                x, y = row["bits_per_dim"], row["passes"]
                wide, high = (
                    [[row[name] - row[f"{name}_low"]], [row[f"{name}_high"] - row[name]]]
                    for name in ("bits_per_dim", "passes")
                )
                handles[row["training"]] = ax.errorbar(x, y, high, wide, color=color, marker=marker, ls="", capsize=2)
            ax.set(title=dataset, xlabel="held-out bits per dimension", ylabel=f"forward passes within {WITHIN:g}")
            ax.margins(0.12)
    return fig
