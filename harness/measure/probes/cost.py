"""What one Jacobi iteration of a layer costs beside the layer decoded sequentially (SeJD, open question 3).

Both are timed on the first layer, which costs what any other does, in rounds of both, so that their ratio is free of
the machine's drift. No iteration is stopped by what it computes, so any weights will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from harness.decoders import Decoder, build_decoder
from harness.flows.protocols import CausalLayer, Condition
from harness.measure.probes.probe import Probe, Rows, Subject, Unit, probes
from harness.measure.probes.shapes import image_columns, network_columns, tarflow_of
from harness.metrics.timing import timed


@probes.register("cost")
@dataclass(kw_only=True)
class Cost(Probe):
    """Seconds of one Jacobi iteration and of sequential decoding of one layer, over batch sizes."""

    batches: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(description="Samples decoded together.")] = (
        1, 4, 16, 64,
    )  # fmt: skip
    rounds: Annotated[int, Field(ge=1, description="Of each batch size.")] = 7
    most_tokens: Annotated[int, Field(ge=1, description="Leave batches out that hold more tokens than this.")] = 2**16

    iterations: ClassVar[int] = 2
    """That one round is the mean of: the first alone begins with a cold cache."""

    def units(self, subject: Subject) -> list[Unit]:
        """One per batch size, since the rounds of a ratio must be measured by one process.

        Raises:
            HarnessError: a flow that is no TarFlow.
        """
        tokens = tarflow_of(subject.flow).num_tokens
        return [
            Unit(f"batch {batch}", {"batch_size": batch}, ("costs",), cost=1 + batch * tokens / 1024)
            for batch in self.batches
            if batch * tokens <= self.most_tokens
        ]

    def measure(self, subject: Subject, units: Sequence[Unit]) -> Iterator[dict[str, Rows]]:
        """A row per round."""
        flow, layer = subject.flow, subject.flow.layers[0]
        columns = network_columns(flow) | image_columns(flow)
        solvers = {
            "sequential": build_decoder("sequential"),
            "jacobi": build_decoder("ujd", tau=0.0, max_iterations=self.iterations, fallback="leave"),
        }
        for unit in units:
            latents, labels = subject.samples(range(unit.key["batch_size"]))
            condition = flow.condition(len(latents), labels)
            inputs = layer.arrange(flow.scale_latents(latents))
            rows = []
            for number in range(-1, self.rounds):  # the first is warm-up
                seconds = _round(solvers, layer, inputs, condition, subject.device, flipped=number % 2 == 1)
                iteration_s = seconds["jacobi"] / min(self.iterations, flow.num_tokens - 1)
                if number >= 0:
                    rows.append(
                        unit.key
                        | columns
                        | {"round": number, "iteration_s": iteration_s, "sequential_s": seconds["sequential"]}
                    )
            yield {"costs": rows}


@torch.inference_mode()
def _round(
    solvers: dict[str, Decoder],
    layer: CausalLayer,
    inputs: torch.Tensor,
    condition: Condition,
    device: str,
    flipped: bool,
) -> dict[str, float]:
    """Seconds of each, one after the other; `flipped` turns the order round."""
    names = list(solvers)[:: -1 if flipped else 1]
    return {name: timed(lambda name=name: solvers[name].solve(layer, inputs, condition), device)[0] for name in names}  # type: ignore[misc]
