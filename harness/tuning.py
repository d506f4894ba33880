"""Choosing how each layer of a flow is decoded: what `harness tune` does.

Nothing is searched blindly. Every candidate is timed on one layer of the flow, at the batch size in question, in
shuffled rounds; and its error is measured on every layer, on latents decoded exactly. How much an error in a layer's
output matters in the sample is measured too, by decoding the rest exactly from a perturbed output. With errors of
different layers taken as independent, the fastest schedule for every deviation is then found exactly, layer by layer.
The fastest within the budget is decoded on latents that it was not chosen on; while it fails there, the next safer one
is tried, and sequential decoding ends the list.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.decoders import Decoder, build_decoder
from harness.decoders.auto import Auto, LayerChoice, LayerSchedule, bind_choices, schedule_path
from harness.decoders.fits import checkpoint_digest
from harness.decoders.sequential import solve_sequential
from harness.flows.base import CausalFlow, CausalLayer, Condition

MARGIN = 0.9
"""Share of the budget that a schedule may be predicted to use, and of SeJD's deviation that it may have: both are of
some latents, and others differ."""
ROUNDS = 5
"""Timings of every candidate."""

SEQUENTIAL = LayerChoice("sequential")


def candidates(flow: CausalFlow) -> list[LayerChoice]:
    """What a layer may be decoded by, each a fixed amount of work; also in half precision, which has its own error."""
    longest = flow.num_tokens - 1
    fitted = [{"iterations": [n]} for n in (1, 2, 3, 4, 6, 8) if n < longest]
    strides = [stride for stride in (2, 4, 8, 16, 32) if flow.num_tokens // 32 <= stride <= flow.num_tokens // 8]
    shared = {"initial": "fitted", "correction": "fitted", "fallback": "leave"}
    slides = [
        {"window": times * stride, "advance": stride, **shared}
        for stride in strides
        for times in (2, 3, 4)
        if times * stride <= longest
    ]
    choices = [*(("fitted", options) for options in fitted), *(("frontier", options) for options in slides)]
    half = {"network_dtype": "bfloat16"}
    return [SEQUENTIAL, *(LayerChoice(name, options | more) for more in ({}, half) for name, options in choices)]


def tune_checkpoint(flow: CausalFlow, source: Path, batch: int, budget: float | None, samples: int = 64) -> Path:
    """Tune and store the schedule; the path it was written to."""
    schedule = tune(flow, batch, budget, samples, digest=checkpoint_digest(source))
    path = schedule_path(source, schedule.device, batch, budget)
    schedule.save(path)
    return path


@torch.no_grad()
def tune(
    flow: CausalFlow, batch: int, budget: float | None = None, samples: int = 64, seed: int = 1, digest: str = ""
) -> LayerSchedule:
    """Find the fastest schedule within a budget.

    Args:
        flow: what is decoded.
        batch: samples decoded together.
        budget: the deviation allowed, RMSE of tokens to the exact sample; None for that of SeJD at tau 0.5.
        samples: latents that errors are measured on, and as many to confirm the schedule.
        seed: of the latents and classes.
        digest: of the checkpoint.
    """
    generator = torch.Generator().manual_seed(seed)
    tuned_on, held_out = (_Sample.draw(flow, samples, generator) for _ in range(2))
    device = tuned_on.latents.device.type
    choices = candidates(flow)
    solvers = [choice.build().bind(flow, samples) for choice in choices]
    seconds = _time(flow, batch, solvers)
    sejd = build_decoder("sejd")
    predicted, allowed = (
        sample.deviation(sejd, batch) if budget is None else budget for sample in (tuned_on, held_out)
    )
    limit = allowed if budget is not None else MARGIN * allowed
    errors = _errors(flow, tuned_on, solvers)
    for places in _pareto(seconds, errors, (MARGIN * predicted) ** 2):
        layers = tuple(choices[place] for place in places)
        deviation = held_out.deviation(_Fixed(layers), samples)
        if deviation <= limit:
            break
    else:
        layers, deviation = (SEQUENTIAL,) * flow.num_layers, 0.0
    predicted_s = sum(seconds[choices.index(choice)] for choice in layers)
    return LayerSchedule(layers, device, batch, budget, allowed, deviation, predicted_s, digest)


class _Fixed(Auto):
    """A schedule that is not stored yet."""

    def __init__(self, layers: tuple[LayerChoice, ...]) -> None:
        super().__init__()
        self._choices = layers

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        """With these choices."""
        self._layers = bind_choices(flow, batch, self._choices)
        return self


@dataclass(frozen=True)
class _Sample:
    """Latents with their classes and exact samples."""

    flow: CausalFlow
    latents: Tensor
    labels: Tensor | None
    exact: Tensor

    @classmethod
    def draw(cls, flow: CausalFlow, count: int, generator: torch.Generator) -> _Sample:
        latents = flow.sample_latents(count, generator)
        labels = None
        if flow.num_classes:
            labels = torch.randint(flow.num_classes, (count,), generator=generator).to(latents.device)
        return cls(flow, latents, labels, build_decoder("sequential").decode(flow, latents, labels).tokens)

    def deviation(self, decoder: Decoder, batch: int) -> float:
        """RMSE of a decoder's tokens to the exact ones, decoded a batch at a time."""
        tokens = torch.cat(
            [
                decoder.decode(
                    self.flow,
                    self.latents[start : start + batch],
                    None if self.labels is None else self.labels[start : start + batch],
                ).tokens
                for start in range(0, len(self.latents), batch)
            ]
        )
        return _rmse(tokens, self.exact)


def _time(flow: CausalFlow, batch: int, solvers: Sequence[Decoder]) -> list[float]:
    """Median seconds that each candidate takes for the first layer."""
    layer, condition = flow.layers[0], flow.condition(batch)
    inputs = layer.arrange(flow.scale_latents(flow.sample_latents(batch, torch.Generator().manual_seed(0))))
    rounds: list[list[float]] = [[] for _ in solvers]
    order = list(range(len(solvers)))
    shuffle = random.Random(0).shuffle
    for attempt in range(ROUNDS + 1):
        shuffle(order)
        for place in order:
            _wait(inputs)
            start = time.perf_counter()
            solvers[place].solve(layer, inputs, condition)
            _wait(inputs)
            if attempt:  # the first is a warm-up
                rounds[place].append(time.perf_counter() - start)
    return [statistics.median(times) for times in rounds]


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _errors(flow: CausalFlow, sample: _Sample, solvers: Sequence[Decoder]) -> list[list[float]]:
    """For every layer and candidate, the mean squared deviation of the sample that it causes alone."""
    condition = flow.condition(len(sample.latents), sample.labels)
    tokens, errors = flow.scale_latents(sample.latents), []
    for place, layer in enumerate(flow.layers):
        inputs = layer.arrange(tokens)
        exact, _ = solve_sequential(layer, inputs, condition)
        outputs = [solver.solve(layer, inputs, condition)[0] for solver in solvers]
        squared = [_rmse(output, exact) ** 2 for output in outputs]
        typical = min(range(len(solvers)), key=lambda i: abs(squared[i] - _middle(squared)))
        gain = 1.0
        if squared[typical] > 0:
            sampled = _finish(flow.layers[place + 1 :], layer.restore(outputs[typical]), condition)
            gain = _rmse(sampled, sample.exact) ** 2 / squared[typical]
        errors.append([gain * error for error in squared])
        tokens = layer.restore(exact)
    return errors


def _middle(squared: Sequence[float]) -> float:
    """The error of a candidate that is neither exact nor rough, where perturbations are the size that matters."""
    inexact = [error for error in squared if error > 1e-10]
    return statistics.median(inexact) if inexact else 0.0


def _finish(layers: Sequence[CausalLayer], tokens: Tensor, condition: Condition) -> Tensor:
    """Decode the remaining layers exactly."""
    for layer in layers:
        tokens = layer.restore(solve_sequential(layer, layer.arrange(tokens), condition)[0])
    return tokens


def _rmse(tokens: Tensor, exact: Tensor) -> float:
    deviation = float((tokens - exact).square().mean().sqrt())
    return deviation if deviation == deviation else float("inf")


def _pareto(seconds: Sequence[float], errors: Sequence[Sequence[float]], allowed: float) -> list[tuple[int, ...]]:
    """All schedules within the allowed squared error that none beats in both time and error, fastest first.

    Layers are added one by one and what is beaten is dropped, which is exact because both costs add up.
    """
    frontier: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for layer_errors in errors:
        grown = sorted(
            (time_s + seconds[place], error + layer_error, (*places, place))
            for time_s, error, places in frontier
            for place, layer_error in enumerate(layer_errors)
            if error + layer_error <= allowed
        )
        frontier, least = [], float("inf")
        for entry in grown:
            if entry[1] < least:
                frontier.append(entry)
                least = entry[1]
    return [places for _, _, places in frontier]
