"""Measuring which layers SeJD should keep sequential: what iteration leaves of a few samples."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.decoders.exact import ExactBatch, LayerProblem, samples_together
from harness.decoders.initial import INITIAL
from harness.decoders.selection import SUFFIX, LayerErrors, Selection
from harness.decoders.stored import checkpoint_digest, storage
from harness.flows.protocols import CausalFlow
from harness.progress import SILENT, Reporter

SAMPLES = 32
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
    batch = ExactBatch.draw(flow, samples, torch.Generator().manual_seed(0), samples_together(flow))
    reporter.begin(samples * flow.num_layers * (flow.num_layers + 1) / 2)
    layers = []
    for number, problem in enumerate(batch.layers(reporter.advance), 1):
        reporter.unit("layers", f"what iteration leaves of layer {number} of {flow.num_layers}")
        layers.append(_layer(batch, problem, reporter))
    digest = "" if flow.source is None else checkpoint_digest(flow.source)
    return Selection(digest, samples, flow.num_tokens, tuple(layers))


def _layer(batch: ExactBatch, problem: LayerProblem, reporter: Reporter) -> LayerErrors:
    """Residuals and errors iteration by iteration, and the gain of the error where the papers' threshold ends."""
    tokens = INITIAL["zeros"](problem.layer, problem.inputs)
    residuals: list[tuple[float, ...]] = []
    errors: list[tuple[float, ...]] = []
    tokens[:, 0] = problem.inputs[:, 0]
    left, most = None, min(MOST, problem.inputs.shape[1] - 1)
    while not residuals or (max(residuals[-1]) > SETTLED and len(residuals) < most):
        update = problem.update(tokens)
        residuals.append(_numbers((update - tokens).abs().amax(dim=(1, 2))))
        errors.append(_numbers((update - problem.exact).square().mean(dim=(1, 2))))
        tokens = update
        if left is None and max(residuals[-1]) < TAU:
            left = tokens
    left = tokens if left is None else left
    own = _rmse(left, problem.exact)
    sample = batch.finished(problem.layer, left, reporter.advance)
    gain = _rmse(sample, batch.exact) / own if 0 < own < HUGE else 1.0
    return LayerErrors(problem.layer.number, problem.layer.block, tuple(residuals), tuple(errors), gain)


def _rmse(tokens: Tensor, exact: Tensor) -> float:
    return _numbers((tokens - exact).square().mean().sqrt()[None])[0]


def _numbers(values: Tensor) -> tuple[float, ...]:
    """Four digits of each; `HUGE` in place of one that is not finite."""
    return tuple(float(f"{value:.4g}") for value in values.nan_to_num(HUGE, HUGE).clamp(max=HUGE).tolist())
