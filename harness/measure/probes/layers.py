"""Which layers to keep sequential: every one of the 2^K choices (SeJD, arXiv 2505.24791, takes the first alone).

Every choice is decoded once, which gives its depth, token evaluations and deviation, the same on every machine. Its
seconds are the sum of its layers', each timed both ways from its exact input. The fastest choices at every deviation,
and those that the literature would take, are then timed as whole decodes, in shuffled rounds with sequential decoding.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median
from typing import Annotated, Any

import torch
from pydantic import Field

from harness.decoders import Decoder, build_decoder
from harness.decoders.exact import ExactBatch
from harness.decoders.schedule import find_schedule
from harness.decoders.selection import selection_of
from harness.flows.protocols import CausalFlow, CausalLayer
from harness.measure.cells import Subject
from harness.measure.probes.probe import Probe, alternating, probe_table, probes
from harness.measure.units import Bench, Rows, Unit, batches
from harness.metrics.deviation import Deviation
from harness.metrics.timing import timed
from harness.options import Batch, Count, NonNegative
from harness.runs.tables import FLAG, INTEGER, REAL, TEXT

Choice = tuple[int, ...]
"""Layers that are decoded sequentially, by their place in decoding order."""

AUTO = "auto"
_COUNTS = ("iterations", "depth", "token_evaluations")

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
        "sequential_layers": TEXT,  # such as "1+3"; "none"
        "iterations": REAL,  # of Jacobi, summed over layers, the mean over batches
        "depth": REAL,
        "token_evaluations": REAL,  # per sample
        "deviation_rmse": REAL,
        "deviation_max": REAL,
        "predicted_s": REAL,  # sum of the layers' median seconds
    },
)
"""One row per choice of the layers to be decoded sequentially: all 2^K of them."""

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
    """All 2^K choices of the layers that are decoded sequentially: cost, deviation, and the best few by the clock."""

    tables = (LAYER_CHOICE, LAYER_COSTS, LAYER_SECONDS, LAYER_SETS, LAYER_SET_ROUNDS)
    exclusive = True

    batches: Annotated[tuple[Batch, ...], Field(description="Samples decoded together.")] = (
        1, 16, 64,
    )  # fmt: skip
    samples: Annotated[Count, Field(description="That iterations, depth and deviation rest on: in whole batches.")] = 1
    tau: Annotated[NonNegative, Field(description="Stopping threshold of the others.")] = 0.5
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
        choices = selection_of(flow).choices(self.tau, size)
        parts = batches(range(-(-self.samples // size) * size), size)
        drawn = _Choices([bench.batch(subject, part) for part in parts], subject.device, self.tau)
        found = drawn.choices()
        seconds = drawn.layer_seconds(self.rounds)
        for row in found:
            row["predicted_s"] = _predicted(row["_choice"], seconds)
        rounds = drawn.choice_rounds(self._timed(flow, found), self.rounds)
        sets = [{name: value for name, value in row.items() if name != "_choice"} for row in found]
        tables = {
            "layer_choice": [{"tau": self.tau} | vars(choice) for choice in choices],
            "layer_costs": [row | {"tau": self.tau} for row in drawn.alone(found)],
            "layer_seconds": seconds,
            "layer_sets": [row | {"tau": self.tau} for row in sets],
            "layer_set_rounds": rounds,
        }
        return {name: [{**unit.key, **row} for row in rows] for name, rows in tables.items()}

    def _timed(self, flow: CausalFlow, found: Rows) -> list[Choice | None]:
        """The choices on the frontier of seconds and deviation, the fastest first, each single layer, all, and none.

        None stands for the tuned schedule, where one is stored.
        """
        frontier, least = [], float("inf")
        for row in sorted(found, key=lambda row: (row["predicted_s"], row["deviation_rmse"])):
            if row["deviation_rmse"] < least:
                least = row["deviation_rmse"]
                frontier.append(row["_choice"])
        single = [row["_choice"] for row in found if len(row["_choice"]) <= 1]
        choices: list[Choice | None] = list(dict.fromkeys([*frontier[: self.best], *single]))
        if found and find_schedule(flow, found[0]["batch_size"], None) is not None:
            choices.append(None)
        return choices


@dataclass(frozen=True)
class _Choices:
    """Batches of a flow, the first of which is timed, and the decoder of every choice of its layers."""

    batches: Sequence[ExactBatch]
    device: str
    tau: float

    @property
    def batch(self) -> ExactBatch:
        return self.batches[0]

    def decoder(self, choice: Choice | None) -> Decoder:
        """Sequential in the layers chosen and Jacobi in the others; the tuned schedule for None."""
        if choice is None:
            return build_decoder("auto")
        return build_decoder("sejd", tau=self.tau, sequential_layers=choice)

    def choices(self) -> Rows:
        """A row per choice; every batch is decoded once."""
        rows = []
        for choice in _subsets(self.batch.flow.num_layers):
            decoder, deviation, counts = self.decoder(choice), Deviation(), []
            for batch in self.batches:
                result = batch.result(decoder)
                iterations = sum(trace.iterations for trace in result.layers if not trace.exact)
                counts.append((iterations, result.depth, result.token_evaluations))
                deviation.add(result.tokens, batch.exact)
            found = deviation.result()
            rows.append(
                {
                    "_choice": choice,
                    "batch_size": len(self.batch),
                    "samples": sum(map(len, self.batches)),
                    "sequential_layers": name_of(choice),
                    **dict(zip(_COUNTS, map(fmean, zip(*counts, strict=True)), strict=True)),
                    **{name: found[name] for name in ("deviation_rmse", "deviation_max")},
                }
            )
        return rows

    def alone(self, found: Rows) -> Rows:
        """A row per layer: it alone by Jacobi iteration, all others exact."""
        numbers = {layer.number: layer.block for layer in self.batch.flow.layers}
        by_choice = {row["_choice"]: row for row in found}
        rows = []
        for number, block in numbers.items():
            row = by_choice[tuple(other for other in numbers if other != number)]
            kept = ("iterations", "deviation_rmse", "deviation_max")
            rows.append({"layer": number, "block": block} | {name: row[name] for name in kept})
        return rows

    def layer_seconds(self, rounds: int) -> Rows:
        """A row per layer and round: its seconds sequentially and by Jacobi iteration, one after the other."""
        sequential, jacobi = build_decoder("sequential"), build_decoder("ujd", tau=self.tau, fallback="leave")

        @torch.inference_mode()
        def seconds(layer: CausalLayer, *given: Any) -> list[dict[str, float]]:
            solvers = {
                "sequential_s": lambda: sequential.solve(layer, *given),
                "jacobi_s": lambda: jacobi.solve(layer, *given),
            }
            return list(alternating(solvers, rounds, self.device))

        return [
            {"layer": problem.layer.number, "round": number} | taken
            for problem in self.batch.layers()
            for number, taken in enumerate(seconds(problem.layer, problem.inputs, problem.condition))
        ]

    def choice_rounds(self, choices: Sequence[Choice | None], rounds: int) -> Rows:
        """A row per choice and round; every round decodes each of them once, in shuffled order."""
        everything = tuple(layer.number for layer in self.batch.flow.layers)
        decoders = {choice: self.decoder(choice) for choice in dict.fromkeys([*choices, everything])}
        shuffle, rows = random.Random(0).shuffle, []
        for number in range(-1, rounds):
            order = list(decoders)
            shuffle(order)
            seconds = {
                choice: timed(lambda choice=choice: self.batch.result(decoders[choice]), self.device)[0]  # type: ignore[misc]
                for choice in order
            }
            if number >= 0:
                rows += [
                    {
                        "sequential_layers": AUTO if choice is None else name_of(choice),
                        "round": number,
                        "wall_s": wall_s,
                        "sequential_s": seconds[everything],
                    }
                    for choice, wall_s in seconds.items()
                ]
        return rows


def name_of(choice: Choice) -> str:
    """A choice as the tables name it.

    >>> name_of((1, 3)), name_of(())
    ('1+3', 'none')
    """
    return "+".join(map(str, choice)) or "none"


def _subsets(layers: int) -> list[Choice]:
    numbers = range(1, layers + 1)
    return [choice for size in range(layers + 1) for choice in combinations(numbers, size)]


def _predicted(choice: Choice, seconds: Rows) -> float:
    """Sum over layers of the median seconds of each, the way it is decoded in this choice."""
    numbers = sorted({row["layer"] for row in seconds})
    way = {number: "sequential_s" if number in choice else "jacobi_s" for number in numbers}
    return sum(median(row[way[number]] for row in seconds if row["layer"] == number) for number in numbers)
