"""What a flow is worth and what decoding it costs: the two sides of training for fast decoding (SeJD, open question 2).

Worth: bits per dimension of held-out images, over several draws of noise. Cost, by counts that no clock decides: the
iterations of UJD in every layer, and the fewest forward passes in which `fitted` stays within a deviation. Its
iterations are grown from one a layer, each time in the layer where one more lowers the deviation most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from harness.datasets import load_dataset
from harness.datasets.base import SPLITS
from harness.decoders import Decoder, DecodeResult, build_decoder
from harness.decoders.exact import ExactBatch
from harness.flows.checkpoints import read_metadata, training_noise
from harness.flows.protocols import CausalFlow
from harness.measure.cells import Subject
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.units import Bench, Rows, Unit
from harness.metrics.deviation import Deviation
from harness.metrics.likelihood import Noise, bits_per_dim, levels_of
from harness.options import Batch, Count, NonNegative, Positive
from harness.runs.tables import INTEGER, REAL, TEXT

MOST = 16
"""Iterations a layer, in the mean, at which no more are tried."""

LIKELIHOODS = probe_table(
    "likelihoods", ("draw",), {"draw": INTEGER, "bits_per_dim": REAL, "num_samples": INTEGER}
)  # fmt: skip
"""One row per flow and draw of noise: bits per dimension of images of the test split."""

JACOBI_ITERATIONS = probe_table(
    "jacobi_iterations",
    ("guess", "layer"),
    {"guess": TEXT, "tau": REAL, "batch_size": INTEGER, "layer": INTEGER, "block": INTEGER, "iterations": INTEGER},
)
"""One row per flow, initial guess and layer: iterations of UJD at tau."""

BUDGETS = probe_table(
    "budgets",
    ("budget",),
    {
        "budget": TEXT,  # "sejd" for SeJD's deviation at tau 0.5, or a number
        "allowed": REAL,  # the deviation (RMSE, image units) that it stands for
        "deviation_rmse": REAL,  # of `fitted` with these iterations
        "iterations": TEXT,  # of every layer in decoding order, such as "3+1+1"
        "forward_passes": REAL,  # of `fitted`: token evaluations over those of one pass through all layers
        "sejd_passes": REAL,  # of SeJD at tau 0.5
        "batch_size": INTEGER,
    },
)
"""One row per flow and deviation allowed: the fewest forward passes of `fitted` that were found to keep it."""


@probes.register("price")
@dataclass(kw_only=True)
class Price(Probe):
    """Bits per dimension beside the iterations and forward passes that decoding takes."""

    tables = (LIKELIHOODS, JACOBI_ITERATIONS, BUDGETS)

    draws: Annotated[Count, Field(description="Of noise, for bits per dimension.")] = 5
    images: Annotated[Count, Field(description="Of the test split that these rest on, at most.")] = 1000
    batch: Annotated[Batch, Field(description="Samples that are decoded, together.")] = 64
    tau: Annotated[Positive, Field(description="Stopping threshold of UJD.")] = 0.01
    budgets: Annotated[tuple[NonNegative, ...], Field(description="Deviations allowed, beside SeJD's.")] = (0.01,)

    def reads(self) -> list[tuple[Decoder, int]]:
        return [(build_decoder("fitted"), self.batch)]

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        draws = [
            Unit(f"draw {draw}", (subject,), 1.0, {"draw": draw}, (LIKELIHOODS.name,)) for draw in range(self.draws)
        ]
        return [*draws, Unit("decoding", (subject,), 20.0, tables=(JACOBI_ITERATIONS.name, BUDGETS.name))]

    @torch.no_grad()
    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        flow = bench.flow(subject)
        if unit.key:
            return {LIKELIHOODS.name: [{**unit.key, **self._bits(flow, subject, bench, unit.key["draw"])}]}
        batch = bench.batch(subject, range(self.batch))
        rows = {JACOBI_ITERATIONS.name: self._iterations(batch), BUDGETS.name: self._budgets(batch)}
        return {name: [{"batch_size": self.batch, **row} for row in found] for name, found in rows.items()}

    def _bits(self, flow: CausalFlow, subject: Subject, bench: Bench, draw: int) -> dict[str, Any]:
        size = None if flow.image_shape is None else flow.image_shape[-1]

        def load() -> tuple[Any, Any]:
            splits = [load_dataset(subject.dataset, split, subject.data_root, size) for split in SPLITS]
            return splits[1].of_shape(flow.image_shape, f"'{subject.dataset}'").first(self.images), levels_of(*splits)

        images, levels = bench.keep("images", subject.dataset, load)
        assert flow.source is not None
        uniform = read_metadata(flow.source).get("noise") == "uniform"
        noise = Noise("uniform" if uniform else "gaussian", training_noise(flow.source), draw)
        return {"bits_per_dim": bits_per_dim(flow, images, levels, noise, draws=1), "num_samples": len(images)}

    def _iterations(self, batch: ExactBatch) -> Rows:
        return [
            {"guess": guess, "tau": self.tau, **{key: getattr(trace, key) for key in ("layer", "block", "iterations")}}
            for guess in ("input", "zeros")
            for trace in batch.result(build_decoder("ujd", tau=self.tau, initial=guess, fallback="leave")).layers
        ]

    def _budgets(self, batch: ExactBatch) -> Rows:
        sejd = batch.result(build_decoder("sejd", tau=0.5))
        allowed = {"sejd": _deviation(batch, sejd)} | {f"{budget:g}": budget for budget in self.budgets}
        rows: Rows = []
        iterations = (1,) * batch.flow.num_layers
        for budget, most in sorted(allowed.items(), key=lambda item: -item[1]):
            iterations, result = fewest(batch, most, iterations)
            rows.append(
                {
                    "budget": budget,
                    "allowed": most,
                    "deviation_rmse": _deviation(batch, result),
                    "iterations": "+".join(map(str, iterations)),
                    "forward_passes": result.fpe,
                    "sejd_passes": sejd.fpe,
                }
            )
        return rows


def fewest(batch: ExactBatch, most: float, iterations: Sequence[int]) -> tuple[tuple[int, ...], DecodeResult]:
    """Iterations of `fitted` in every layer, grown from those given until the deviation is at most so much.

    Where it never is, they are those at which `MOST` was reached; the deviation tells.
    """
    chosen = tuple(iterations)
    result = batch.result(build_decoder("fitted", iterations=chosen))
    while _deviation(batch, result) > most and sum(chosen) < MOST * len(chosen):
        grown = [tuple(n + (i == layer) for i, n in enumerate(chosen)) for layer in range(len(chosen))]
        results = [batch.result(build_decoder("fitted", iterations=one)) for one in grown]
        best = min(range(len(grown)), key=lambda layer: _deviation(batch, results[layer]))
        chosen, result = grown[best], results[best]
    return chosen, result


def _deviation(batch: ExactBatch, result: DecodeResult) -> float:
    """RMSE to the exact samples; infinite where a sample is not finite."""
    deviation = Deviation()
    deviation.add(result.tokens, batch.exact)
    found = deviation.mse
    return float("inf") if found is None or deviation.nonfinite else found**0.5
