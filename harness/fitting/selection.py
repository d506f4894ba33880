"""Measuring which layers SeJD should keep sequential: a few exactly decoded samples, and what iteration leaves of them."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from harness.decoders.exact import ExactBatch, LayerProblem, finished
from harness.decoders.initial import INITIAL
from harness.decoders.selection import SUFFIX, LayerErrors, Selection
from harness.decoders.stored import checkpoint_digest, storage
from harness.decoders.windows import calm
from harness.flows.protocols import CausalFlow
from harness.progress import SILENT, Reporter

SAMPLES = 16
TAU = 0.5
"""The papers': a layer's gain is that of the error which is left there."""
SETTLED, MOST = 0.01, 64
"""Residual after which a layer is iterated no more, and iterations after which it is not in any case."""
HUGE = 1e30
"""In place of what overflowed."""


def store_selection(flow: CausalFlow, samples: int = SAMPLES, reporter: Reporter = SILENT) -> None:
    """Measure, and store that beside what is fitted to the flow's checkpoint, or with a flow that has none."""
    found = measure_selection(flow, samples, reporter)
    if flow.source is None:
        flow.fits[Selection] = found
    else:
        found.save(storage(flow.source, SUFFIX))


@torch.no_grad()
def measure_selection(flow: CausalFlow, samples: int = SAMPLES, reporter: Reporter = SILENT) -> Selection:
    """What Jacobi iteration leaves of every layer, and what that does to the sample."""
    batch = ExactBatch.draw(flow, samples, torch.Generator().manual_seed(0))
    reporter.begin(samples * flow.num_layers * (flow.num_layers + 1) / 2)
    layers = []
    for number, problem in enumerate(batch.layers(reporter.advance), 1):
        reporter.unit("layers", f"what iteration leaves of layer {number} of {flow.num_layers}")
        layers.append(_layer(batch, problem, reporter))
    digest = "" if flow.source is None else checkpoint_digest(flow.source)
    return Selection(digest, samples, flow.num_tokens, tuple(layers))


def _layer(batch: ExactBatch, problem: LayerProblem, reporter: Reporter) -> LayerErrors:
    """Both norms iteration by iteration, and the gain of the error where the papers' threshold ends."""
    tokens, residuals, errors = INITIAL["zeros"](problem.layer, problem.inputs), [], []
    left = None
    tokens[:, 0] = problem.inputs[:, 0]
    while not residuals or (residuals[-1] > SETTLED and len(residuals) < min(MOST, len(tokens[0]) - 1)):
        update = problem.update(tokens)
        residuals.append(_finite((update - tokens).abs().max()))
        errors.append(_finite((update - problem.exact).square().mean().sqrt()))
        tokens = update
        if calm(residuals[-1], TAU) and left is None:
            left = tokens
    left = tokens if left is None else left
    own = _finite((left - problem.exact).square().mean().sqrt())
    gain = 1.0
    if 0 < own < HUGE:
        sample = finished(batch, problem.layer, left, reporter.advance)
        gain = _finite((sample - batch.exact).square().mean().sqrt()) / own
    return LayerErrors(problem.layer.number, problem.layer.block, tuple(residuals), tuple(errors), gain)


def _finite(value: torch.Tensor) -> float:
    """A number; `HUGE` in place of one that is none, or larger."""
    return min(float(value), HUGE) if math.isfinite(value) else HUGE
