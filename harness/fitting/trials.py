"""What each way to decode a layer leaves and takes, measured: what `harness.fitting.tune` chooses by."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.decoders import Decoder
from harness.decoders.exact import ExactBatch, LayerProblem, parts_of
from harness.decoders.sequential import Sequential
from harness.flows.calls import jacobi_update
from harness.flows.protocols import CausalFlow
from harness.metrics.lock import device_lock
from harness.metrics.timing import timed
from harness.progress import Reporter

ROUNDS, MOST_ROUNDS = 5, 40
"""Timings of every candidate: at least `ROUNDS`, at most `MOST_ROUNDS`, in between as many as fit into the seconds."""
CANDIDATE_PASSES, CANDIDATES_COST = 4, 64
"""What a candidate takes for a layer, in passes, and all of them, in exact decodes of it on a CPU: both roughly."""
FEWEST = 16
"""Samples at least, and in whole multiples of these, where a processor's network calls need not be full."""


@dataclass(frozen=True)
class Costs:
    """What a sample of a flow takes where only results matter.

    Args:
        exact_s: seconds of its exact decode.
        pass_s: seconds of one pass of every layer.
        step: samples that are no cheaper one by one.
    """

    exact_s: float
    pass_s: float
    step: int

    @classmethod
    @torch.inference_mode()  # as decodes, whose graphs are used
    def measured(cls, flow: CausalFlow, size: int) -> Costs:
        """By a decode of a few samples, or, on a GPU, which fewer do not fill, of `size`."""
        device = flow.device.type
        step, times = (min(size, FEWEST), 1) if device == "cpu" else (size, 2)  # the first of two captures
        drawn = ExactBatch.draw(flow, step, torch.Generator().manual_seed(0))
        layer = flow.layers[0]
        inputs = layer.arrange(flow.scale_latents(drawn.latents))
        calls = (lambda: drawn.decode(Sequential()), lambda: jacobi_update(layer, inputs, inputs, drawn.condition))
        exact_s, update_s = (min(timed(call, device)[0] for _ in range(times)) for call in calls)
        return cls(exact_s / step, flow.num_layers * update_s / step, step)

    def affordable(self, seconds: float, most: int, exact: float, passes: float) -> int:
        """Samples, each decoded exactly and passed through all layers so many times, for which the seconds suffice.

        >>> Costs(1.0, 0.5, 16).affordable(100.0, 256, 1.0, 2.0)
        48
        """
        if math.isinf(seconds):
            return most
        count = int(seconds / (exact * self.exact_s + passes * self.pass_s)) // self.step * self.step
        return min(most, max(self.step, count))


def medians(
    calls: Sequence[Callable[[], object]], device: torch.device, enough_s: float, most_s: float, reporter: Reporter,
    title: str,
) -> list[float]:  # fmt: skip
    """Median seconds of each call, all of them made in every round, in shuffled order, alone on the device.

    A call that is not reached in half of the seconds that this may take at most is left out: it takes forever.
    """
    reporter.begin(1.0)
    reporter.unit("tune", f"timing {title}")
    done = 0.0
    rounds: list[list[float]] = [[] for _ in calls]
    order = list(range(len(calls)))
    shuffle = random.Random(0).shuffle
    with device_lock(device.type):
        began = time.perf_counter()
        for attempt in range(MOST_ROUNDS + 1):
            taken = time.perf_counter() - began
            if (attempt > ROUNDS and taken > enough_s) or (attempt > 1 and taken > most_s):
                break
            spent = min(taken / max(enough_s, 1e-9), attempt / (ROUNDS + 1))
            share = max(attempt / (MOST_ROUNDS + 1), spent)
            reporter.advance(share - done)
            reporter.unit("tune", f"timing {title}, round {attempt}")
            done = share
            if attempt:
                shuffle(order)
            for place in list(order):
                if not attempt and place and time.perf_counter() - began > most_s / 2:
                    order.remove(place)
                    continue
                wall_s, _ = timed(calls[place], device.type)
                if attempt:  # the first is a warm-up
                    rounds[place].append(wall_s)
    return [statistics.median(times) if times else math.inf for times in rounds]


def errors_of(
    batch: ExactBatch, solvers: Sequence[Decoder], reporter: Reporter, deadline: float = math.inf
) -> list[list[float]]:
    """For every layer and candidate, the mean squared deviation of the sample that it causes alone.

    Of a candidate that is not reached in a layer's share of the time it is infinite: it is not chosen there.
    """
    errors, flow, count = [], batch.flow, len(batch)
    reporter.begin(count * flow.num_layers * (CANDIDATES_COST + (flow.num_layers + 1) / 2))
    for place, problem in enumerate(batch.layers(reporter.advance)):
        outputs: list[Tensor] = []
        until = time.monotonic() + (deadline - time.monotonic()) / (flow.num_layers - place)
        for solver in solvers:
            if outputs and time.monotonic() > until:
                break
            reporter.unit("tune", f"{len(solvers)} ways to decode layer {place + 1} of {flow.num_layers}")
            outputs.append(_solved(flow, problem, solver))
            reporter.advance(count * CANDIDATES_COST / len(solvers))
        squared = [_rmse(output, problem.exact) ** 2 for output in outputs]
        typical = min(range(len(outputs)), key=lambda i: abs(squared[i] - _middle(squared)))
        gain = 1.0
        if squared[typical] > 0:
            sampled = batch.finished(problem.layer, outputs[typical], reporter.advance)
            gain = _rmse(sampled, batch.exact) ** 2 / squared[typical]
        missed = [math.inf] * (len(solvers) - len(outputs))
        errors.append([gain * error for error in squared] + missed)
    return errors


def _solved(flow: CausalFlow, problem: LayerProblem, solver: Decoder) -> Tensor:
    """(samples, L, D) outputs of a layer, in its own order, so many samples at a time."""
    parts = parts_of(problem.condition, len(problem.inputs), problem.size)
    layer = solver.called(flow)[problem.layer.number - 1]
    return torch.cat([solver.solve(layer, problem.inputs[rows], condition)[0] for rows, condition in parts])


def _middle(squared: Sequence[float]) -> float:
    """The error of a candidate that is neither exact nor rough, where perturbations are the size that matters."""
    inexact = [error for error in squared if error > 1e-10]
    return statistics.median(inexact) if inexact else 0.0


def _rmse(tokens: Tensor, exact: Tensor) -> float:
    deviation = float((tokens - exact).square().mean().sqrt())
    return deviation if deviation == deviation else float("inf")
