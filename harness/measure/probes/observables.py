"""Observables of samples of a physical model: a quality measure where there are no images (arXiv 2505.24791, Sec. E.3).

Every decoder decodes the same latents, and its spins are drawn with the same random numbers, so that the difference to
the exact samples is that of the decoder alone, far below the statistical error of either mean. Beside them stand the
model's true expectations: what separates the flow's exact samples from these is the flow's own error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.decoders import Decoder, build_decoder
from harness.errors import HarnessError
from harness.flows import CausalFlow
from harness.flows.ising import HasTarget, Ising
from harness.measure.cells import BASELINE, Subject
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.units import Bench, Rows, Unit, batches
from harness.options import Batch, Count, parse_decoder
from harness.runs.tables import INTEGER, REAL, TEXT

OBSERVABLES = probe_table(
    "observables",
    ("decoder", "observable"),
    {
        "decoder": TEXT,  # with its options, as on a command line
        "observable": TEXT,
        "mean": REAL,  # over samples
        "standard_error": REAL,
        "difference": REAL,  # to the sequential samples of the same latents and draws, mean over samples
        "difference_error": REAL,
        "expected": REAL,  # under the model itself, exact
        "independent": REAL,  # likewise, if spins ignored each other
        "num_samples": INTEGER,
    },
)
"""One row per flow, decoder and observable."""


@probes.register("observables")
@dataclass(kw_only=True)
class Observables(Probe):
    """Observables of a flow's samples, decoder by decoder, beside the exact ones of the model it was trained on."""

    tables = (OBSERVABLES,)

    decoders: Annotated[tuple[str, ...], Field(description="As 'NAME option=value'; sequential comes by itself.")] = (
        "ujd tau=2.0", "ujd tau=1.0", "ujd tau=0.5", "ujd tau=0.1", "ujd tau=0.01", "sejd tau=0.5",
    )  # fmt: skip
    samples: Annotated[Count, Field(ge=2, description="Latents that are decoded.")] = 100_000
    batch: Annotated[Batch, Field(description="Samples that are decoded together.")] = 1000

    def reads(self) -> list[tuple[Decoder, int]]:
        return [(_build(spec), self.batch) for spec in self.decoders]

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        _model(flow, subject)
        for spec in self.decoders:
            _build(spec)
        specs = dict.fromkeys([BASELINE, *self.decoders])
        return [
            Unit(spec, (subject,), 8.0 if spec == BASELINE else 1.0, {"decoder": spec}, ("observables",))
            for spec in specs
        ]

    @torch.no_grad()
    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        model, spec = _model(bench.flow(subject), subject), unit.key["decoder"]
        exact = bench.keep("exact", (subject.cell_id, self.samples), lambda: self._values(subject, bench, BASELINE))
        found = exact if spec == BASELINE else self._values(subject, bench, spec)
        return {
            "observables": [
                {
                    "decoder": spec,
                    "observable": name,
                    "mean": float(values.mean()),
                    "standard_error": _standard_error(values),
                    "difference": float((values - exact[name]).mean()),
                    "difference_error": _standard_error(values - exact[name]),
                    "expected": model.exact[name],
                    "independent": model.independent()[name],
                    "num_samples": len(values),
                }
                for name, values in found.items()
            ]
        }

    def _values(self, subject: Subject, bench: Bench, spec: str) -> dict[str, Tensor]:
        """(N,) values of every observable."""
        tokens, flow, decoder = [], bench.flow(subject), _build(spec)
        for part in batches(range(self.samples), self.batch):
            tokens.append(decoder.decode(flow, bench.batch(subject, part).latents).tokens[..., 0].cpu())
        return _model(flow, subject).measure(torch.cat(tokens), torch.Generator().manual_seed(self.seed))


def _model(flow: CausalFlow, subject: Subject) -> Ising:
    if not isinstance(flow, HasTarget) or flow.target is None:
        raise HarnessError(
            f"'{subject.checkpoint}' was not trained on a model with observables; the shipped flow 'ising' was"
        )
    return flow.target


def _build(spec: str) -> Decoder:
    return build_decoder(**parse_decoder(spec))


def _standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))
