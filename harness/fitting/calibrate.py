"""Fitting guesses and corrections to a flow: what `harness calibrate` does.

A few hundred latents are decoded exactly. For every layer, ridge regression then fits the guess to its outputs, and,
iteration by iteration from that guess, a correction to the error that each Jacobi update leaves. The strength of every
ridge is chosen on samples held out from its fit. See `harness.decoders.calibration` for what is fitted.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from harness.decoders.calibration import SUFFIX, Calibration, LayerFit, find_calibration
from harness.decoders.certificate import certifiable
from harness.decoders.exact import ExactBatch, LayerProblem, samples_together
from harness.decoders.maps import DENSE, CausalMap
from harness.decoders.stored import checkpoint_digest, storage
from harness.fitting.certificate import SAMPLES as CERTIFIED
from harness.fitting.certificate import measured_ratios
from harness.fitting.crm import metrics_of
from harness.fitting.learned import fit_learned
from harness.fitting.regression import Samples, fit_correction, fit_guess
from harness.fitting.trials import Costs
from harness.flows.protocols import CausalFlow, ShowsOutputWeights
from harness.progress import SILENT, Reporter

SAMPLES, DENSE_SAMPLES = 512, 4096
"""Latents that are decoded exactly, at most."""
LEAST_S, MOST_S = {"cpu": 170.0, "cuda": 25.0}, {"cpu": 540.0, "cuda": 90.0}
"""Seconds that it all may take, by kind of device, unless a caller says otherwise: `DECODES` exact decodes of as many
samples as half of `SAMPLES`, and in between these."""
DECODES = 8
FITTING, LEARNING = 0.4, 0.7
"""Shares of these after which maps are fitted and, where corrections are learned, after which that is done; the rest is
for certificates."""
CORRECTIONS = 4
"""Iterations that get a correction of their own."""
PASSES, CERTIFYING = 14, 80
"""Passes of every layer that a sample takes to be fitted on, and to tell what its certificates are worth."""


def store_calibration(
    flow: CausalFlow, samples: int | None = None, seed: int = 0, reporter: Reporter = SILENT, *,
    learned: bool = False, seconds: float | None = None, together: int | None = None,
) -> Path | None:  # fmt: skip
    """Fit to a flow and store that for its checkpoint, or with a flow that has none; the path it was written to.

    Where layers are affine, what certificates are to deviations is measured too, see `store_ratio`.
    """
    digest = "" if flow.source is None else checkpoint_digest(flow.source)
    costs = Costs.measured(flow, together or samples_together(flow))
    seconds = within(flow, costs.exact_s) if seconds is None else seconds
    made = calibrate(flow, samples, seed, digest, reporter, costs, learned=learned, seconds=seconds, together=together)
    path = _store(flow, made)
    return _certified(flow, made, made.samples, seed, reporter, costs, seconds) if certifiable(flow) else path


def store_ratio(flow: CausalFlow, reporter: Reporter = SILENT) -> None:
    """Measure what certificates are to deviations for a flow that was calibrated before that was done."""
    made = find_calibration(flow)
    assert made is not None  # a decoder that asks for this alone found one
    costs = Costs.measured(flow, samples_together(flow))
    _certified(flow, made, CERTIFIED, 0, reporter, costs, within(flow, costs.exact_s))


def _certified(
    flow: CausalFlow, made: Calibration, samples: int, seed: int, reporter: Reporter, costs: Costs, seconds: float
) -> Path | None:
    samples = costs.affordable((1 - LEARNING) * seconds, min(samples, CERTIFIED), 1.0, CERTIFYING)
    for ratio in measured_ratios(flow, made, samples, seed, reporter):
        made.ratio = ratio
        path = _store(flow, made)
    return path


def _store(flow: CausalFlow, made: Calibration) -> Path | None:
    if flow.source is None:
        flow.fits[Calibration] = made.to(flow.device, flow.dtype)
        return None
    path = storage(flow.source, SUFFIX)
    made.save(path)
    return path


@torch.no_grad()
def calibrate(
    flow: CausalFlow, samples: int | None = None, seed: int = 0, digest: str = "", reporter: Reporter = SILENT,
    costs: Costs | None = None, *, learned: bool = False, seconds: float | None = None, together: int | None = None,
) -> Calibration:  # fmt: skip
    """Fit guesses and corrections to every layer, and measure how tough it is where it shows its output weights.

    Args:
        flow: what is decoded; a conditional one with classes drawn uniformly.
        samples: how many latents are decoded exactly for it; None for `SAMPLES`, or `DENSE_SAMPLES` where maps are
            dense, which have more to learn from sequences that cost less, or as many as the seconds suffice for.
        costs: of a sample of the flow, where they are known; else they are measured.
        learned: whether to learn corrections too, in layers that show their hidden state.
        seconds: that this may take with measuring what certificates are worth, about; None for `within`.
        together: samples of a network call; None for as many as suit the device, see `samples_together`.
    """
    began, generator = time.monotonic(), torch.Generator().manual_seed(seed)
    lags, size = neighbours(flow), together or samples_together(flow)
    costs = costs or Costs.measured(flow, size)
    seconds = within(flow, costs.exact_s) if seconds is None else seconds
    if samples is None:
        share = FITTING if learned else LEARNING
        samples = costs.affordable(share * seconds, most_samples(flow), 1.0, PASSES)
    batch = ExactBatch.draw(flow, samples, torch.Generator().manual_seed(seed), size)
    known = Samples(batch.labels, flow.num_classes, lags)
    layers: list[LayerFit] = []
    reporter.begin(flow.num_layers * samples)
    reporter.unit("calibrate", f"layer 1 of {flow.num_layers}, {samples} samples")
    for problem in batch.layers(reporter.advance):
        fit = _fit_layer(problem, known)
        if learned and problem.layer.hidden_dim:
            left = LEARNING * seconds - (time.monotonic() - began)
            deadline = time.monotonic() + left / (flow.num_layers - len(layers))
            near = nearest(flow.num_tokens, flow.image_shape is not None)
            fit = fit_learned(problem, fit, known, near, generator, deadline, reporter.note)
        layers.append(fit)
        reporter.unit("calibrate", f"layer {min(len(layers) + 1, flow.num_layers)} of {flow.num_layers}")
    shown = all(isinstance(layer, ShowsOutputWeights) for layer in flow.layers)
    return Calibration(digest, layers, samples, metrics_of(flow) if shown else None, learned)


def within(flow: CausalFlow, exact_s: float) -> float:
    """Seconds that a calibration may take unless somebody says otherwise, from those of a sample's exact decode."""
    device = flow.device.type
    return min(MOST_S[device], max(LEAST_S[device], DECODES * SAMPLES / 2 * exact_s))


def most_samples(flow: CausalFlow) -> int:
    """How many latents a calibration decodes exactly, at most, where no number is asked for."""
    return DENSE_SAMPLES if neighbours(flow) is None else SAMPLES


def neighbours(flow: CausalFlow) -> tuple[int, ...] | None:
    """Lags of the predecessors that matter: the last two tokens and, in an image, the three in the row before.

    None where the sequence is so short that all predecessors can be looked at.
    """
    return None if flow.num_tokens * flow.token_dim <= DENSE else nearest(flow.num_tokens, flow.image_shape is not None)


def nearest(num_tokens: int, image: bool) -> tuple[int, ...]:
    """`neighbours`, however short the sequence."""
    row = math.isqrt(num_tokens)
    lags = {1, 2, row - 1, row, row + 1} if image else {1, 2}
    return tuple(sorted(lag for lag in lags if 0 < lag < num_tokens))


def _fit_layer(problem: LayerProblem, samples: Samples) -> LayerFit:
    """The guess, and corrections of the iterations from it, one after the other."""
    guess = fit_guess(problem.inputs, problem.exact, samples)
    fitted: list[CausalMap] = []
    tokens = guess(problem.inputs, samples.labels)
    for _ in range(CORRECTIONS):
        tokens[:, 0] = problem.inputs[:, 0]
        update = problem.update(tokens)
        change = update - tokens
        fitted.append(fit_correction(change, problem.exact - update, samples))
        tokens = update + fitted[-1](change, samples.labels)
    return LayerFit(guess, fitted)
