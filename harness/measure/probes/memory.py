"""What a decode needs in memory, and of what: weights, cache, the tensors alive at once, and the peak as measured.

The peak is measured as the memory pass of a run does it, in a fresh process on a CPU. The bytes of live tensors are
counted in a second decode, so they are the same on every machine; the difference is what allocator and libraries add.
A Jacobi decode is cut after two iterations, since the second needs as much as any later one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from harness.errors import unknown
from harness.flows import CausalFlow
from harness.flows.protocols import CausalLayer
from harness.flows.tap import Call, Observer, tap
from harness.measure.cells import Cell, Subject
from harness.measure.expand import expand
from harness.measure.matrix import build_matrix
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.probes.shapes import network_columns, tarflow_of
from harness.measure.tasks.memory import KERNELS, need_of
from harness.measure.units import Bench, Rows, Unit, batch_of
from harness.metrics.live import live_peak
from harness.options import Batch, Count, parse_decoder
from harness.runs.tables import FLOW, INTEGER, NETWORK, OUTCOME, TEXT

TWICE = "max_iterations=2 fallback=leave"

MEMORY_SCALING = probe_table(
    "memory_scaling",
    ("attention", "label", "batch_size", "method"),
    {
        "heads": INTEGER,
        "attention": TEXT,  # "fused": never a whole matrix of scores; "math": one per head and sample
        "decoder": TEXT,
        "label": TEXT,
        "batch_size": INTEGER,
        "window": INTEGER,  # the most tokens of a network call
        "weights_bytes": INTEGER,
        "cache_bytes": INTEGER,  # counted, like the next: deterministic
        "live_bytes": INTEGER,  # of all tensors alive at once, cache included, weights not
        "peak_bytes": INTEGER,  # measured
        "method": TEXT,  # as in `memory`
        **OUTCOME,
    },
    FLOW | NETWORK,
)
"""One row per flow, kernel of attention, decoder, batch and method: what a decode needs, weights, cache and tensors
apart."""


@probes.register("memory")
@dataclass(kw_only=True)
class Memory(Probe):
    """Peak, weights, cache and live tensors of a decode, over batch sizes, decoders and kernels of attention."""

    tables = (MEMORY_SCALING,)

    batches: Annotated[tuple[Batch, ...], Field(description="Samples decoded together.")] = (
        1, 4, 16, 64, 256,
    )  # fmt: skip
    decoders: Annotated[tuple[str, ...], Field(description="As 'NAME option=value ...'.")] = (
        "sequential",
        f"ujd {TWICE}",
        f"sejd {TWICE}",
        f"gs-jacobi {TWICE}",
    )
    kernels: Annotated[tuple[str, ...], Field(description="Of attention: fused, math.")] = ("fused",)
    most_tokens: Annotated[Count, Field(description="Leave batches out that hold more tokens than this.")] = 2**18

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        tarflow_of(flow)
        for kernel in self.kernels:
            if kernel not in KERNELS:
                raise unknown("kernel of attention", kernel, KERNELS)
        return [
            Unit(
                f"{cell.title}, attention {kernel}",
                (subject,),
                1 + cell.batch_size * flow.num_tokens / 1024,
                {"attention": kernel, "label": cell.label, "batch_size": cell.batch_size},
                ("memory_scaling",),
            )
            for kernel in self.kernels
            for cell in self._cells(flow, subject)
        ]

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        flow, kernel = bench.flow(subject), unit.key["attention"]
        wanted = (unit.key["label"], unit.key["batch_size"])
        cell = next(cell for cell in self._cells(flow, subject) if (cell.label, cell.batch_size) == wanted)
        config = tarflow_of(flow).config
        attempt = bench.attempt(subject, unit.title, lambda: need_of(cell, lambda _: flow, [live_peak], kernel))
        shared = {**unit.key, **network_columns(flow), "decoder": cell.decoder, **attempt.outcome}
        shared |= {"heads": config.channels // config.head_dim, "window": _widest(cell, flow)}
        if attempt.value is None:
            return {"memory_scaling": [shared | {"method": "none"}]}
        need = attempt.value
        *measured, live = need.peaks
        shared |= {"weights_bytes": need.weights_bytes, "cache_bytes": need.cache_bytes, "live_bytes": live.bytes}
        return {"memory_scaling": [shared | {"method": peak.method, "peak_bytes": peak.bytes} for peak in measured]}

    def _cells(self, flow: CausalFlow, subject: Subject) -> list[Cell]:
        fitting = [batch for batch in self.batches if batch * flow.num_tokens <= self.most_tokens]
        if not fitting:
            return []
        return expand(
            build_matrix(
                {
                    "name": "memory",
                    "device": subject.device,
                    "datasets": [{"name": subject.dataset, "checkpoint": subject.checkpoint_path}],
                    "decoders": [parse_decoder(spec) for spec in self.decoders],
                    "grid": {"batch_sizes": fitting, "seeds": [self.seed]},
                },
                "the probe's decoders",
            )
        )


class _Widest(Observer):
    """The most tokens of a call."""

    window = 0

    def evaluated(self, layer: CausalLayer, call: Call) -> None:
        self.window = max(self.window, call.window)


def _widest(cell: Cell, flow: CausalFlow) -> int:
    replace(batch_of(cell, flow, range(1)), flow=tap(flow, observer := _Widest())).result(cell.build())
    return observer.window
