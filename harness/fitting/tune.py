"""Choosing how each layer of a flow is decoded: what `harness tune` does.

Nothing is searched blindly. The error of every candidate is measured on every layer, on latents decoded exactly; a
candidate is a fixed amount of work, so its error is the same whatever the batch. How much an error in a layer's output
matters in the sample is measured too, by decoding the rest exactly from a perturbed output. For each batch size every
candidate is then timed on one layer of the flow, in shuffled rounds. With errors of different layers taken as
independent, the fastest schedule for every deviation is found exactly, layer by layer. The fastest within the budget is
decoded on latents that it was not chosen on; while it cannot be said there, with 95 % confidence, that it keeps the
budget on others, a safer one is tried, and sequential decoding ends the list. The dtype of its networks, where the
clock of a layer tells least, is chosen by whole decodes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.decoders import Decoder, build_decoder
from harness.decoders.auto import Auto, bind_choices
from harness.decoders.calibration import find_calibration
from harness.decoders.exact import ExactBatch, samples_together
from harness.decoders.schedule import LayerChoice, LayerSchedule, schedule_suffix
from harness.decoders.stored import checkpoint_digest, storage
from harness.fitting.bounds import RootMean, root_mean
from harness.fitting.trials import CANDIDATE_PASSES, Costs, errors_of, medians
from harness.flows.precision import multiplies_bfloat16
from harness.flows.protocols import CausalFlow
from harness.progress import SILENT, Reporter

ENOUGH_S = 40.0
"""Seconds of timing candidates after which the least number of rounds is enough, unless a caller says otherwise."""
SECONDS = {"cpu": 600.0, "cuda": 30.0}
"""That tuning may take, by kind of device, unless a caller says otherwise."""
ERRORS, HELD_OUT, SEJD, TIMING = 0.4, 0.2, 0.1, 0.5
"""Shares of these: of all, for the errors of candidates, to confirm, and for SeJD; of what is left, for each timing."""
SAMPLES = 256
"""Latents that errors are measured on, and that schedules are confirmed on, at most."""
CONFIRMING, SEJD_PASSES = 20, 6
"""Passes that it takes, roughly, to confirm a schedule with those that are tried and not confirmed; that SeJD takes."""
SEJD_BATCHES, FEWEST_BATCHES = 16, 4
"""Batches that SeJD's deviation is known from; of single samples four times as many."""

SLACK = 1.3
"""Deviations are predicted too large by less than this: errors of layers partly cancel."""

SEQUENTIAL = LayerChoice("sequential")
HALF = "bfloat16"

Layers = tuple[LayerChoice, ...]


def candidates(flow: CausalFlow) -> list[LayerChoice]:
    """What a layer may be decoded by, each a fixed amount of work; in half precision too where that gains."""
    longest, found = flow.num_tokens - 1, find_calibration(flow)
    kinds = ["fitted"]  # a linear correction is less exact and quicker, most of all at batch 1
    if found is not None and any(len(fit.learned) for fit in found.layers):
        kinds.append("learned")
    fitted = [{"iterations": [n], "correction": kind} for kind in kinds for n in (1, 2, 3, 4, 5, 6, 8) if n < longest]
    strides = [2**power for power in range(1, 16) if longest // 8 < 2**power <= longest // 4 + 1]
    slides = [
        {"window": times * stride, "advance": stride, "initial": "fitted", "correction": kinds[-1], "fallback": "leave"}
        for stride in strides
        for times in (2, 3, 4)
        if times * stride <= longest
    ]
    choices: list[tuple[str, dict[str, Any]]] = [
        *(("fitted", options) for options in fitted),
        *(("frontier", options) for options in slides),
    ]
    dtypes = (None, HALF) if multiplies_bfloat16(flow.device) else (None,)
    return [SEQUENTIAL, *(LayerChoice(*choice).with_networks(dtype) for dtype in dtypes for choice in choices)]


def _all_in(dtype: str | None, layers: Layers) -> Layers:
    """The same schedule with all networks of iterated layers in half precision, or none."""
    return tuple(choice.with_networks(dtype) for choice in layers)


def store_schedule(flow: CausalFlow, schedule: LayerSchedule) -> Path | None:
    """Store a schedule for the flow's checkpoint, or with the flow where there is none; the path it was written to."""
    for key in [key for key in flow.fits if isinstance(key, tuple) and key[0] is Auto]:
        del flow.fits[key]  # bound to the schedules there were
    if flow.source is None:
        flow.fits.setdefault((LayerSchedule, schedule.budget), {})[schedule.batch] = schedule
        return None
    path = storage(flow.source, schedule_suffix(schedule.device, schedule.batch, schedule.budget))
    schedule.save(path)
    return path


class Tuner:
    """What is measured of a flow once, and the schedules that follow from it.

    Args:
        samples: latents that errors are measured on, and as many to confirm a schedule; None for `SAMPLES`, or as many
            as the seconds suffice for.
        reporter: told of every stage.
        enough_s: seconds of timing candidates after which the least number of rounds is enough.
        seconds: that all of it may take, about; None for `SECONDS`. Fewer samples are decoded and candidates that are
            not reached are left out where it would take longer.
    """

    @torch.inference_mode()  # as decodes, whose graphs are used
    def __init__(
        self, flow: CausalFlow, samples: int | None = None, seed: int = 1, reporter: Reporter = SILENT,
        enough_s: float | None = None, seconds: float | None = None,
    ) -> None:  # fmt: skip
        seconds = SECONDS[flow.device.type] if seconds is None else seconds
        began, self.size, self.most_s = time.monotonic(), samples_together(flow), seconds
        self.deadline = began + seconds
        self.flow, self.seed, self.reporter = flow, seed, reporter
        self.enough_s = ENOUGH_S if enough_s is None else enough_s
        self.choices = candidates(flow)
        self.costs, generator = Costs.measured(flow, self.size), torch.Generator().manual_seed(seed)
        counts = (samples, samples) if samples else self._affordable(seconds)
        self.tuned_on, self.held_out = (ExactBatch.draw(flow, count, generator, self.size) for count in counts)
        self.solvers = [choice.build().bind(flow, len(self.tuned_on)) for choice in self.choices]
        self.errors = errors_of(self.tuned_on, self.solvers, reporter, began + ERRORS * seconds)
        self._seconds: dict[int, list[float]] = {}
        self._sejd: dict[int, float] = {}
        self._deviations: dict[str, RootMean] = {}

    def _affordable(self, seconds: float) -> tuple[int, int]:
        """Samples for the errors of candidates, and those to confirm schedules, in their shares of the seconds."""
        exact, passes = 1 + self.flow.num_layers / 2, CANDIDATE_PASSES * len(self.choices)
        return (
            self.costs.affordable(ERRORS * seconds, SAMPLES, exact, passes),
            self.costs.affordable(HELD_OUT * seconds, SAMPLES, 1.0, CONFIRMING),
        )

    @torch.inference_mode()
    def schedule(self, batch: int, budget: float | None = None) -> LayerSchedule:
        """The fastest schedule within a budget.

        Args:
            budget: the deviation allowed, RMSE of tokens to the exact sample; None for that of SeJD at tau 0.5.
        """
        seconds, allowed = self.seconds(batch), self.allowed(batch, budget)
        chosen = self._within(allowed, seconds)
        dtypes = dict.fromkeys(choice.options.get("network_dtype") for choice in self.choices)
        of = dict(zip(map(str, self.choices), seconds, strict=True))
        others = [other for dtype in dtypes if (other := _all_in(dtype, chosen)) != chosen]
        timed = [other for other in others if all(math.isfinite(of[str(choice)]) for choice in other)]
        layers = self._fastest(batch, [chosen, *(other for other in timed if self._held(other).upper <= allowed)])
        predicted_s = sum(of[str(choice)] for choice in layers)
        device, deviation = self.flow.device.type, self._held(layers).value
        digest = "" if self.flow.source is None else checkpoint_digest(self.flow.source)
        return LayerSchedule(layers, device, batch, budget, allowed, deviation, predicted_s, digest)

    def _within(self, allowed: float, seconds: Sequence[float]) -> Layers:
        """The fastest schedule whose deviation on the latents held out is surely within what is allowed.

        What is predicted may be too much, so schedules are tried from `SLACK` times what is allowed. After one that is
        not within it, the next to be tried is predicted to be as much safer as was missing.
        """
        safe = (SLACK * allowed) ** 2
        for places in _pareto(seconds, self.errors, safe):
            predicted = sum(errors[place] for errors, place in zip(self.errors, places, strict=True))
            if predicted <= safe:
                layers = tuple(self.choices[place] for place in places)
                upper = self._held(layers).upper
                if upper <= allowed:
                    return layers
                safe = predicted * (allowed / upper) ** 2
        self.reporter.note(f"no faster schedule is surely within {allowed:.3g}: every layer is decoded sequentially")
        return (SEQUENTIAL,) * self.flow.num_layers

    def _held(self, layers: Layers) -> RootMean:
        """Deviation of a schedule on the latents held out, where each sample is by itself."""
        key = str(layers)
        if key not in self._deviations:
            self._deviations[key] = root_mean(self.held_out.squared(_Fixed(layers), self.size).cpu().numpy())
        return self._deviations[key]

    def _fastest(self, batch: int, schedules: Sequence[Layers]) -> Layers:
        if len(schedules) == 1:
            return schedules[0]
        drawn = ExactBatch.draw(self.flow, batch, torch.Generator().manual_seed(0))
        calls = [partial(drawn.result, _Fixed(layers)) for layers in schedules]
        seconds = self._medians(calls, f"{len(calls)} schedules")
        return schedules[seconds.index(min(seconds))]

    def seconds(self, batch: int) -> list[float]:
        """Of every candidate for one layer."""
        if batch not in self._seconds:
            self._seconds[batch] = self._time(batch)
        return self._seconds[batch]

    def _time(self, batch: int) -> list[float]:
        """Median seconds that each candidate takes for the first layer."""
        drawn = ExactBatch.draw(self.flow, batch, torch.Generator().manual_seed(0))
        layer = self.flow.layers[0]
        inputs = layer.arrange(self.flow.scale_latents(drawn.latents))
        calls = [partial(solver.solve, solver.called(self.flow)[0], inputs, drawn.condition) for solver in self.solvers]
        return self._medians(calls, f"{len(calls)} ways, batch {batch}")

    def _medians(self, calls: Sequence[Callable[[], object]], title: str) -> list[float]:
        most_s = TIMING * (self.deadline - time.monotonic())
        return medians(calls, self.flow.device, self.enough_s, most_s, self.reporter, title)

    def allowed(self, batch: int, budget: float | None) -> float:
        """The deviation that a budget comes to: for SeJD's, what it is at least.

        SeJD's stopping rule spans the batch, so batches are what its deviation is known from.
        """
        if budget is not None:
            return budget
        if batch not in self._sejd:
            wanted = batch * max(SEJD_BATCHES, 4 * SEJD_BATCHES // batch)
            most = self.costs.affordable(SEJD * self.most_s, wanted, 1.0, SEJD_PASSES)
            count = batch * max(FEWEST_BATCHES, most // batch)
            drawn = self.held_out.select(slice(0, count))
            if count > len(drawn):
                drawn = ExactBatch.draw(self.flow, count, torch.Generator().manual_seed(self.seed + 1), self.size)
            self.reporter.begin(1.0)
            self.reporter.unit("tune", f"deviation of SeJD in batches of {batch}, {len(drawn)} samples")
            self._sejd[batch] = root_mean(drawn.squared(build_decoder("sejd"), batch).cpu().numpy(), batch).lower
        return self._sejd[batch]


class _Fixed(Auto):
    """A schedule that is not stored yet."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self._choices = layers

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        self._layers = bind_choices(flow, batch, self._choices)
        return self


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
