"""Which layers to keep sequential: the 2^K choices, or a few (SeJD, arXiv 2505.24791, takes the first alone).

Each of them is decoded once, which gives its depth, token evaluations and deviation, the same on every machine. Its
seconds are the sum of its layers', each timed both ways from its exact input. The fastest choices at every deviation,
and those that the literature would take, are then timed as whole decodes, in shuffled rounds with sequential decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median
from typing import Annotated, Literal

import torch
from pydantic import Field

from harness.decoders import Decoder, build_decoder
from harness.decoders.schedule import find_schedule
from harness.decoders.selection import Selection, selection_of
from harness.flows.protocols import CausalFlow
from harness.measure.cells import Subject
from harness.measure.probes.choices import Choice, Choices, subsets
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.units import Bench, Rows, Unit, batches
from harness.options import Batch, Count, NonNegative
from harness.runs.tables import FLAG, INTEGER, REAL, TEXT

LAYER_CHOICE = probe_table(
    "layer_choice",
    ("batch_size", "layer"),
    {
        "tau": REAL,
        "batch_size": INTEGER,
        "layer": INTEGER,
        "block": INTEGER,
        "iterations": REAL,  # from zeros, in the mean over a few samples in such batches
        "error_rms": REAL,  # that they leave in the layer's outputs
        "gain": REAL,  # RMSE of the samples over that of the layer's outputs
        "deviation": REAL,  # RMSE of the samples that this causes
        "calls": REAL,  # network calls in a row that keeping the layer sequential adds
        "kept": FLAG,  # by ``sejd select="measured"``
    },
)
"""One row per layer: why ``sejd select="measured"`` keeps it sequential or not."""

LAYER_ERRORS = probe_table(
    "layer_errors",
    ("batch_size", "layer", "iteration"),
    {
        "batch_size": INTEGER,  # of the unit that told it; the errors are those of single samples
        "layer": INTEGER,
        "iteration": INTEGER,  # from zeros, the layer's inputs exact
        "residual": REAL,  # the largest of the samples'
        "error_rms": REAL,  # that is left in the layer's outputs
        "gain": REAL,
        "samples": INTEGER,
    },
)
"""One row per layer and iteration: what ``sejd select="measured"`` knows of it; error times gain is its deviation."""

LAYER_COSTS = probe_table(
    "layer_costs",
    ("batch_size", "layer"),
    {
        "tau": REAL,
        "batch_size": INTEGER,
        "layer": INTEGER,
        "block": INTEGER,
        "iterations": REAL,  # the mean over batches
        "deviation_rmse": REAL,  # of the samples, in image units
        "deviation_max": REAL,
    },
)
"""One row per flow, threshold, batch and layer: the layer by Jacobi iteration, all others exact."""

LAYER_SECONDS = probe_table(
    "layer_seconds",
    ("batch_size", "layer", "round"),
    {"batch_size": INTEGER, "layer": INTEGER, "round": INTEGER, "sequential_s": REAL, "jacobi_s": REAL},
    {},
)
"""One row per layer and round: its seconds both ways, from its exact input."""

LAYER_SETS = probe_table(
    "layer_sets",
    ("batch_size", "sequential_layers"),
    {
        "tau": REAL,
        "batch_size": INTEGER,
        "samples": INTEGER,
        "sequential_layers": TEXT,  # such as "1+3"; "none"; "auto": the tuned schedule
        "iterations": REAL,  # of Jacobi, summed over layers, the mean over batches
        "depth": REAL,
        "token_evaluations": REAL,  # per sample
        "deviation_rmse": REAL,
        "deviation_max": REAL,
        "predicted_s": REAL,  # sum of the layers' median seconds; null for "auto"
    },
)
"""One row per choice of the layers to be decoded sequentially, and one of the tuned schedule where one is stored."""

LAYER_SET_ROUNDS = probe_table(
    "layer_set_rounds",
    ("batch_size", "sequential_layers", "round"),
    {
        "batch_size": INTEGER,
        "sequential_layers": TEXT,
        "round": INTEGER,
        "wall_s": REAL,
        "sequential_s": REAL,  # all layers sequential, in the same round
    },
    {},
)
"""One row per choice that was timed and round; "auto" is the tuned schedule."""


@probes.register("layers")
@dataclass(kw_only=True)
class Layers(Probe):
    """Choices of the layers that are decoded sequentially: cost, deviation, and the best few by the clock."""

    tables = (LAYER_CHOICE, LAYER_ERRORS, LAYER_COSTS, LAYER_SECONDS, LAYER_SETS, LAYER_SET_ROUNDS)
    exclusive = True

    batches: Annotated[tuple[Batch, ...], Field(description="Samples decoded together.")] = (
        1, 16, 64,
    )  # fmt: skip
    samples: Annotated[Count, Field(description="That iterations, depth and deviation rest on: in whole batches.")] = 1
    tau: Annotated[NonNegative, Field(description="Stopping threshold of the others.")] = 0.5
    choices: Annotated[
        Literal["all", "few"], Field(description="All 2^K; few: none, one, all but one and all, and what is measured.")
    ] = "all"
    rounds: Annotated[Count, Field(description="Of every timing.")] = 7
    best: Annotated[Count, Field(description="How many of the fastest choices within a deviation to time.")] = 8

    def reads(self) -> list[tuple[Decoder, int]]:
        return [(build_decoder("sejd", select="measured", tau=self.tau), batch) for batch in self.batches]

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        """One per batch size: what is timed depends on what was measured before."""
        tables = tuple(table.name for table in self.tables)
        return [
            Unit(f"batch {batch}", (subject,), 1 + batch / 8, {"batch_size": batch}, tables) for batch in self.batches
        ]

    @torch.no_grad()
    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        flow = bench.flow(subject)
        size = unit.key["batch_size"]
        selection = selection_of(flow)
        chosen = selection.choices(self.tau, size)
        kept = tuple(choice.layer for choice in chosen if choice.kept)
        parts = batches(range(-(-self.samples // size) * size), size)
        drawn = Choices([bench.batch(subject, part) for part in parts], subject.device, self.tau)
        auto = [None] if find_schedule(flow, size, None) is not None else []
        found = drawn.decoded([*dict.fromkeys([*subsets(flow.num_layers, self.choices == "few"), kept]), *auto])
        seconds = drawn.layer_seconds(self.rounds)
        for row in found:
            row["predicted_s"] = None if row["_choice"] is None else _predicted(row["_choice"], seconds)
        rounds = drawn.choice_rounds([*self._timed(found, kept), *auto], self.rounds)
        sets = [{name: value for name, value in row.items() if name != "_choice"} for row in found]
        tables = {
            "layer_choice": [{"tau": self.tau} | vars(choice) for choice in chosen],
            "layer_errors": _errors(selection),
            "layer_costs": [row | {"tau": self.tau} for row in drawn.alone(found)],
            "layer_seconds": seconds,
            "layer_sets": [row | {"tau": self.tau} for row in sets],
            "layer_set_rounds": rounds,
        }
        return {name: [{**unit.key, **row} for row in rows] for name, rows in tables.items()}

    def _timed(self, found: Rows, kept: Choice) -> list[Choice]:
        """The choices on the frontier of seconds and deviation, the fastest first, none and each single layer.

        Of a few choices none, the paper's and what is `kept` by measurement.
        """
        if self.choices == "few":
            return list(dict.fromkeys([(), (1,), kept]))
        frontier, least = [], float("inf")
        told = [row for row in found if row["_choice"] is not None]
        for row in sorted(told, key=lambda row: (row["predicted_s"], row["deviation_rmse"])):
            if row["deviation_rmse"] < least:
                least = row["deviation_rmse"]
                frontier.append(row["_choice"])
        single = [row["_choice"] for row in told if len(row["_choice"]) <= 1]
        return list(dict.fromkeys([*frontier[: self.best], *single, kept]))


def _errors(selection: Selection) -> Rows:
    return [
        {"layer": of.layer, "iteration": iteration, "gain": of.gain, "samples": selection.samples}
        | {"residual": max(residuals), "error_rms": sqrt(fmean(squares))}
        for of in selection.layers
        for iteration, (residuals, squares) in enumerate(zip(of.residuals, of.errors, strict=True), 1)
    ]


def _predicted(choice: Choice, seconds: Rows) -> float:
    """Sum over layers of the median seconds of each, the way it is decoded in this choice."""
    numbers = sorted({row["layer"] for row in seconds})
    way = {number: "sequential_s" if number in choice else "jacobi_s" for number in numbers}
    return sum(median(row[way[number]] for row in seconds if row["layer"] == number) for number in numbers)
