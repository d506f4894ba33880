"""How many iterations a layer takes as its tokens depend on each other more or less (SeJD, open question 3).

The last projection of every layer's network is what turns other tokens into log_scale and shift. With the rows of
shift multiplied by a gain, the mean of a token depends on the others by as much more or less. Those of log_scale are
left alone: tokens grow with its exponential and soon overflow.

On flows with random weights resolution, patch size and sequence length vary by the name of the shape, with the gain
held; a trained flow at gain 1 is the flow itself.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from harness.decoders import build_decoder
from harness.flows import CausalFlow
from harness.flows.tarflow import TarFlow
from harness.measure.cells import Subject
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.probes.shapes import image_columns, network_columns, tarflow_of
from harness.measure.units import Bench, Rows, Unit
from harness.options import Batch, NonNegative
from harness.runs.tables import FLAG, FLOW, INTEGER, NETWORK, REAL

COUPLINGS = probe_table(
    "couplings",
    ("gain", "tau", "batch_size", "layer"),
    {
        "image_size": INTEGER,
        "patch": INTEGER,
        "gain": REAL,  # factor on how much the shifts of every layer depend on its tokens; 1 is the flow itself
        "tau": REAL,
        "batch_size": INTEGER,
        "layer": INTEGER,
        "block": INTEGER,
        "iterations": INTEGER,
        "converged": FLAG,
    },
    FLOW | NETWORK,
)
"""One row per flow, gain, threshold, batch and layer: iterations of UJD."""


@probes.register("coupling")
@dataclass(kw_only=True)
class Coupling(Probe):
    """Iterations per layer of UJD, over batch sizes and the strength of dependency."""

    tables = (COUPLINGS,)

    gains: Annotated[tuple[NonNegative, ...], Field(description="Factors on what tokens depend on.")] = (1.0,)
    batches: Annotated[tuple[Batch, ...], Field(description="Samples decoded together.")] = (
        1, 16, 64,
    )  # fmt: skip
    tau: Annotated[NonNegative, Field(description="Stopping threshold.")] = 0.5

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        tarflow_of(flow)
        return [
            Unit(
                f"gain {gain:g}, batch {batch}", (subject,), batch, {"gain": gain, "batch_size": batch}, ("couplings",)
            )
            for gain in self.gains
            for batch in self.batches
        ]

    @torch.no_grad()
    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        flow = amplified(tarflow_of(bench.flow(subject)), unit.key["gain"])
        columns = {**unit.key, **network_columns(flow), **image_columns(flow), "tau": self.tau}
        decoder = build_decoder("ujd", tau=self.tau, fallback="leave")
        batch = bench.batch(subject, range(unit.key["batch_size"]))
        return {
            "couplings": [
                columns | {name: getattr(trace, name) for name in ("layer", "block", "iterations", "converged")}
                for trace in decoder.decode(flow, batch.latents, batch.labels).layers
            ]
        }


def amplified(flow: TarFlow, gain: float) -> TarFlow:
    """A flow whose shifts depend on its tokens `gain` times as much; the biases are kept."""
    if gain == 1:
        return flow
    flow = deepcopy(flow)
    for layer in flow.layers:
        layer.proj_out.weight[-layer.token_dim :].mul_(gain)  # the last rows, the only ones if volume preserving
    return flow
