"""What a decode needs in memory, and of what: weights, cache, the tensors alive at once, and the peak as measured.

The peak is measured as the memory pass of a run does it, in a fresh process on a CPU. The bytes of live tensors are
counted in a second decode, so they are the same on every machine; the difference is what allocator and libraries add.
A Jacobi decode is cut after two iterations, since the second needs as much as any later one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.errors import unknown
from harness.flows import CausalFlow, load_flow
from harness.flows.protocols import CausalLayer
from harness.flows.tap import Call, Observer, tap
from harness.measure.cells import Cell, expand
from harness.measure.matrix import build_matrix, parse_decoder
from harness.measure.probes.probe import Probe, Rows, Subject, Unit, probes
from harness.measure.probes.shapes import network_columns, tarflow_of
from harness.measure.tasks.memory import PRELOAD, Need, need_of
from harness.measure.units import Bench, batch_of, decode
from harness.measure.workers import FreshProcess, ProcessDied
from harness.metrics.live import live_peak
from harness.metrics.memory import Peak, cuda_peaks, resident_peak

KERNELS = {
    "fused": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}
"""Kernels of attention by name: the fused ones never hold a whole matrix of scores, the plain one does."""

TWICE = "max_iterations=2 fallback=leave"


@probes.register("memory")
@dataclass(kw_only=True)
class Memory(Probe):
    """Peak, weights, cache and live tensors of a decode, over batch sizes, decoders and kernels of attention."""

    batches: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(description="Samples decoded together.")] = (
        1, 4, 16, 64, 256,
    )  # fmt: skip
    decoders: Annotated[tuple[str, ...], Field(description="As 'NAME option=value ...'.")] = (
        "sequential",
        f"ujd {TWICE}",
        f"sejd {TWICE}",
        f"gs-jacobi {TWICE}",
    )
    kernels: Annotated[tuple[str, ...], Field(description="Of attention: fused, math.")] = ("fused",)
    most_tokens: Annotated[int, Field(ge=1, description="Leave batches out that hold more tokens than this.")] = 2**18

    def units(self, subject: Subject) -> list[Unit]:
        """One per kernel, decoder and batch.

        Raises:
            HarnessError: a flow that is no TarFlow, a kernel or a decoder that does not exist.
        """
        tarflow_of(subject.flow)
        for kernel in self.kernels:
            if kernel not in KERNELS:
                raise unknown("kernel of attention", kernel, KERNELS)
        return [
            Unit(
                f"{cell.title}, attention {kernel}",
                {"attention": kernel, "label": cell.label, "batch_size": cell.batch_size},
                ("memory_scaling",),
                cost=1 + cell.batch_size * subject.flow.num_tokens / 1024,
            )
            for kernel in self.kernels
            for cell in self._cells(subject)
        ]

    def measure(self, subject: Subject, units: Sequence[Unit]) -> Iterator[dict[str, Rows]]:
        """One row per method of measuring."""
        cells = {(cell.label, cell.batch_size): cell for cell in self._cells(subject)}
        config = tarflow_of(subject.flow).config
        bench = Bench(session="memory")
        for unit in units:
            cell, kernel = cells[unit.key["label"], unit.key["batch_size"]], unit.key["attention"]
            attempt = bench.attempt(cell, "memory", lambda cell=cell, kernel=kernel: _need(cell, kernel, subject.flow))  # type: ignore[misc]
            shared = unit.key | network_columns(subject.flow) | {"decoder": cell.decoder} | attempt.outcome
            shared["heads"] = config.channels // config.head_dim
            shared["window"] = _widest(cell, subject.flow)
            if attempt.value is None:
                yield {"memory_scaling": [shared | {"method": "none"}]}
                continue
            need = attempt.value
            *measured, live = need.peaks
            counted = {
                "weights_bytes": need.weights_bytes,
                "cache_bytes": need.cache_bytes,
                "live_bytes": live.bytes,
            }
            yield {
                "memory_scaling": [
                    shared | counted | {"method": peak.method, "peak_bytes": peak.bytes} for peak in measured
                ]
            }

    def _cells(self, subject: Subject) -> list[Cell]:
        fitting = [batch for batch in self.batches if batch * subject.flow.num_tokens <= self.most_tokens]
        if not fitting:
            return []
        return expand(
            build_matrix(
                {
                    "name": "memory",
                    "device": subject.device,
                    "datasets": [{"name": subject.dataset, "checkpoint": str(subject.path)}],
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
    decode(cell.build(), tap(flow, observer := _Widest()), batch_of(cell, flow, range(1)))
    return observer.window


def _need(cell: Cell, kernel: str, flow: CausalFlow) -> Need:
    if cell.device == "cuda":
        return _need_of(cell, kernel, flow)
    try:
        return FreshProcess(*PRELOAD).run(_need_in_this_process, cell, kernel, torch.get_num_threads())
    except ProcessDied as error:
        raise MemoryError(str(error)) from error


def _need_in_this_process(cell: Cell, kernel: str, threads: int) -> Need:
    torch.set_num_threads(threads)
    return _need_of(cell, kernel, load_flow(cell.checkpoint_path, dtype=cell.torch_dtype))


def _need_of(cell: Cell, kernel: str, flow: CausalFlow) -> Need:
    """What `need_of` finds, the live tensors as the last peak."""

    def peaks_of(call: Any) -> list[Peak]:
        measured = cuda_peaks(call) if cell.device == "cuda" else [resident_peak(call)]
        return [*measured, live_peak(call)]

    with sdpa_kernel(KERNELS[kernel]):
        return need_of(cell, flow, peaks_of)
