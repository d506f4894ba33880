"""What one Jacobi iteration of a layer costs beside the layer decoded sequentially (SeJD, open question 3).

Both are timed on the first layer, which costs what any other does, in rounds of both, so that their ratio is free of
the machine's drift. No iteration is stopped by what it computes, so any weights will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from harness.decoders import build_decoder
from harness.flows.protocols import CausalFlow
from harness.measure.cells import Subject
from harness.measure.probes.probe import Probe, alternating, probe_table, probes
from harness.measure.probes.shapes import image_columns, network_columns, tarflow_of
from harness.measure.units import Bench, Rows, Unit
from harness.options import Batch, Count
from harness.runs.tables import FLOW, INTEGER, NETWORK, REAL

COSTS = probe_table(
    "costs",
    ("batch_size", "round"),
    {
        "image_size": INTEGER,
        "patch": INTEGER,
        "batch_size": INTEGER,
        "round": INTEGER,
        "iteration_s": REAL,  # of one Jacobi iteration of the whole layer
        "sequential_s": REAL,  # of the layer decoded sequentially, in the same round
    },
    FLOW | NETWORK,
)
"""One row per flow, batch and round: seconds of the first layer."""


@probes.register("cost")
@dataclass(kw_only=True)
class Cost(Probe):
    """Seconds of one Jacobi iteration and of sequential decoding of one layer, over batch sizes."""

    tables = (COSTS,)
    exclusive = True

    batches: Annotated[tuple[Batch, ...], Field(description="Samples decoded together.")] = (
        1, 4, 16, 64,
    )  # fmt: skip
    rounds: Annotated[Count, Field(description="Of each batch size.")] = 7
    most_tokens: Annotated[Count, Field(description="Leave batches out that hold more tokens than this.")] = 2**16

    iterations: ClassVar[int] = 2
    """That one round is the mean of: the first alone begins with a cold cache."""

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        """One per batch size, since the rounds of a ratio must be measured by one process.

        Raises:
            HarnessError: a flow that is no TarFlow.
        """
        tokens = tarflow_of(flow).num_tokens
        return [
            Unit(f"batch {batch}", (subject,), 1 + batch * tokens / 1024, {"batch_size": batch}, ("costs",))
            for batch in self.batches
            if batch * tokens <= self.most_tokens
        ]

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        flow = bench.flow(subject)
        layer, columns = flow.layers[0], network_columns(flow) | image_columns(flow)
        sequential = build_decoder("sequential")
        jacobi = build_decoder("ujd", tau=0.0, max_iterations=self.iterations, fallback="leave")
        batch = bench.batch(subject, range(unit.key["batch_size"]))
        arguments = layer, layer.arrange(flow.scale_latents(batch.latents)), flow.condition(len(batch), batch.labels)
        solvers = {"sequential": lambda: sequential.solve(*arguments), "jacobi": lambda: jacobi.solve(*arguments)}
        done = min(self.iterations, flow.num_tokens - 1)
        with torch.inference_mode():
            rounds = list(alternating(solvers, self.rounds, subject.device))
        return {
            "costs": [
                {**unit.key, **columns, "round": number, "iteration_s": seconds["jacobi"] / done}
                | {"sequential_s": seconds["sequential"]}
                for number, seconds in enumerate(rounds)
            ]
        }
