"""Choices of the layers that are decoded sequentially: which there are, and what decoding by each gives and takes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import Any

import torch

from harness.decoders import Decoder, build_decoder
from harness.decoders.exact import ExactBatch
from harness.flows.protocols import CausalLayer
from harness.measure.probes.probe import alternating
from harness.measure.units import Rows
from harness.metrics.deviation import Deviation
from harness.metrics.timing import timed

Choice = tuple[int, ...]
"""Layers that are decoded sequentially, by their place in decoding order."""

AUTO = "auto"
_COUNTS = ("iterations", "depth", "token_evaluations")


@dataclass(frozen=True)
class Choices:
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

    def decoded(self, choices: Sequence[Choice | None]) -> Rows:
        """A row per choice; every batch is decoded once."""
        rows = []
        for choice in choices:
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
            seconds = {choice: timed(partial(self.batch.result, decoders[choice]), self.device)[0] for choice in order}
            if number >= 0:
                rows += [
                    {
                        "sequential_layers": name_of(choice),
                        "round": number,
                        "wall_s": wall_s,
                        "sequential_s": seconds[everything],
                    }
                    for choice, wall_s in seconds.items()
                ]
        return rows


def name_of(choice: Choice | None) -> str:
    """A choice as the tables name it.

    >>> name_of((1, 3)), name_of(()), name_of(None)
    ('1+3', 'none', 'auto')
    """
    return AUTO if choice is None else "+".join(map(str, choice)) or "none"


def subsets(layers: int, few: bool = False) -> list[Choice]:
    """Every choice of so many layers; `few`: those of none, one, all but one and all of them."""
    sizes = sorted({0, 1, layers - 1, layers}) if few else range(layers + 1)
    return [choice for size in sizes for choice in combinations(range(1, layers + 1), size)]
