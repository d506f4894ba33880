"""Fitting guesses and corrections to a flow: what `harness calibrate` does.

A few hundred latents are decoded exactly. For every layer, ridge regression then fits the guess to its outputs, and,
iteration by iteration from that guess, a correction to the error that each Jacobi update leaves. The strength of every
ridge is chosen on samples held out from its fit. See `harness.decoders.calibration` for what is fitted.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from harness.decoders.calibration import SUFFIX, Calibration, LayerFit
from harness.decoders.exact import ExactBatch, LayerProblem
from harness.decoders.maps import DENSE, CausalMap
from harness.decoders.stored import checkpoint_digest, storage
from harness.fitting.crm import metrics_of
from harness.fitting.regression import Samples, fit_correction, fit_guess
from harness.flows.protocols import CausalFlow, ShowsOutputWeights
from harness.progress import SILENT, Reporter

SAMPLES, DENSE_SAMPLES = 512, 4096
"""Latents that are decoded exactly."""
CORRECTIONS = 4
"""Iterations that get a correction of their own."""
BATCH = 64
"""Samples per network call."""


def store_calibration(
    flow: CausalFlow, samples: int | None = None, seed: int = 0, reporter: Reporter = SILENT
) -> Path | None:
    """Fit to a flow and store that for its checkpoint, or with a flow that has none; the path it was written to."""
    digest = "" if flow.source is None else checkpoint_digest(flow.source)
    made = calibrate(flow, samples, seed, digest, reporter)
    if flow.source is None:
        flow.fits[Calibration] = made.to(flow.device, flow.dtype)
        return None
    path = storage(flow.source, SUFFIX)
    made.save(path)
    return path


@torch.no_grad()
def calibrate(
    flow: CausalFlow, samples: int | None = None, seed: int = 0, digest: str = "", reporter: Reporter = SILENT
) -> Calibration:
    """Fit guesses and corrections to every layer, and measure how tough it is where it shows its output weights.

    Args:
        flow: what is decoded; a conditional one with classes drawn uniformly.
        samples: how many latents are decoded exactly for it; None for `SAMPLES`, or `DENSE_SAMPLES` where maps are
            dense, which have more to learn from sequences that cost less.
    """
    lags = neighbours(flow)
    samples = samples or (DENSE_SAMPLES if lags is None else SAMPLES)
    batch = ExactBatch.draw(flow, samples, torch.Generator().manual_seed(seed), BATCH)
    known = Samples(batch.labels, flow.num_classes, lags)
    reporter.begin(flow.num_layers * samples)
    reporter.unit("calibrate", f"layer 1 of {flow.num_layers}, {samples} samples")
    layers = []
    for problem in batch.layers(reporter.advance):
        layers.append(_fit_layer(problem, known))
        reporter.unit("calibrate", f"layer {min(len(layers) + 1, flow.num_layers)} of {flow.num_layers}")
    shown = all(isinstance(layer, ShowsOutputWeights) for layer in flow.layers)
    return Calibration(digest, layers, samples, metrics_of(flow) if shown else None)


def neighbours(flow: CausalFlow) -> tuple[int, ...] | None:
    """Lags of the predecessors that matter: the last two tokens and, in an image, the three in the row before.

    None where the sequence is so short that all predecessors can be looked at.
    """
    if flow.num_tokens * flow.token_dim <= DENSE:
        return None
    if flow.image_shape is None:
        return (1, 2)
    row = math.isqrt(flow.num_tokens)
    return tuple(sorted(lag for lag in {1, 2, row - 1, row, row + 1} if 0 < lag < flow.num_tokens))


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
