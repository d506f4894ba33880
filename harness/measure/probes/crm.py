"""Which layers are tough for Jacobi iteration, as GS-Jacobi predicts it and as it is measured (arXiv 2505.12849)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.datasets import load_dataset
from harness.decoders import build_decoder
from harness.errors import HarnessError, unknown
from harness.fitting.crm import layer_metrics
from harness.flows import CausalFlow
from harness.flows.protocols import ShowsOutputWeights
from harness.measure.cells import Subject
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.units import Bench, Rows, Unit
from harness.options import Batch, Count, NonNegative
from harness.runs.tables import FLAG, INTEGER, REAL, TEXT

SOURCES = ("images", "samples")

CRM = probe_table(
    "crm",
    ("layer",),
    {
        "layer": INTEGER,
        "block": INTEGER,
        "data": TEXT,  # of the forward pass: "images" or "samples"
        "crm": REAL,
        "crm_share": REAL,  # of the flow's sum
        "tough": FLAG,
        "igm_input": REAL,
        "igm_zeros": REAL,
        "guess": TEXT,  # that of the lower IGM
        "tau": REAL,
        "iterations_input": INTEGER,  # of UJD at tau from this guess
        "iterations_zeros": INTEGER,
    },
)
"""One row per flow and layer: GS-Jacobi's metrics, and the iterations that they are to predict."""


@probes.register("crm")
@dataclass(kw_only=True)
class Crm(Probe):
    """Convergence ranking and initial guessing metrics of every layer, beside the iterations that UJD takes."""

    tables = (CRM,)

    data: Annotated[
        str, Field(description="Real images of the training split (images), or exact samples (samples).")
    ] = "images"
    samples: Annotated[Count, Field(description="Images, or samples, of the forward pass.")] = 256
    batch: Annotated[Batch, Field(description="Samples whose iterations are counted together.")] = 16
    tau: Annotated[NonNegative, Field(description="Threshold of these iterations.")] = 0.01

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        if self.data not in SOURCES:
            raise unknown("data", self.data, SOURCES)
        if not all(isinstance(layer, ShowsOutputWeights) for layer in flow.layers):
            raise HarnessError(
                f"CRM needs the last linear map of a network, which '{subject.checkpoint}' does not show"
            )
        return [Unit(f"forward pass over {self.samples} {self.data}", (subject,), tables=("crm",))]

    @torch.no_grad()
    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        flow = bench.flow(subject)
        batch = bench.batch(subject, range(self.batch))
        iterations = {}
        for guess in ("input", "zeros"):
            decoder = build_decoder("ujd", tau=self.tau, initial=guess, fallback="leave")
            traces = decoder.decode(flow, batch.latents, batch.labels).layers
            iterations[guess] = {trace.layer: trace.iterations for trace in traces}
        return {
            "crm": [
                {
                    **{name: getattr(of, name) for name in ("layer", "block", "crm", "tough", "guess")},
                    **{f"igm_{guess}": of.igm[guess] for guess in iterations},
                    **{f"iterations_{guess}": taken[of.layer] for guess, taken in iterations.items()},
                    "data": self.data,
                    "crm_share": of.share,
                    "tau": self.tau,
                }
                for of in layer_metrics(flow, *self._tokens(flow, subject, bench))
            ]
        }

    def _tokens(self, flow: CausalFlow, subject: Subject, bench: Bench) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) data and labels (B,)."""
        if self.data == "samples":
            batch = bench.batch(subject, range(self.samples))
            return build_decoder("sequential").decode(flow, batch.latents, batch.labels).tokens, batch.labels
        size = None if flow.image_shape is None else flow.image_shape[-1]
        real = load_dataset(subject.dataset, "train", root=subject.data_root, size=size)
        real = real.of_shape(flow.image_shape, f"'{subject.dataset}'")
        images = real.scaled(slice(self.samples)).to(subject.device)
        labels = None if real.labels is None or not flow.num_classes else real.labels[: self.samples].to(subject.device)
        return flow.to_tokens(images), labels  # type: ignore[attr-defined]
