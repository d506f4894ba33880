"""Memory: a decode whose peak is measured, and whose caches are counted."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from harness.flows import CausalFlow
from harness.flows.tap import Tally, tap
from harness.measure.cells import Cell
from harness.measure.units import Attempt, Bench, Rows, Unit, batch_of
from harness.measure.workers.process import FreshProcess, ProcessDied
from harness.metrics.memory import Peak, cuda_peaks, resident_peak

PRELOAD = ("harness.measure.tasks.memory",)


class Need(NamedTuple):
    """What a decode needs: measured peaks beyond what was held before, and counted bytes."""

    peaks: list[Peak]
    weights_bytes: int | None
    cache_bytes: int


@dataclass(frozen=True)
class MemoryTask:
    """One unit per cell. On the CPU each is measured in a fresh process; on CUDA by torch's allocator, in this one."""

    name: ClassVar[str] = "memory"
    exclusive: ClassVar[bool] = False

    def units(self, cells: Sequence[Cell]) -> list[Unit]:
        """One per cell."""
        return [
            Unit(f"{cell.dataset}, {cell.title}", (cell,), 2 * (1 + cell.batch_size / 16), tables=(self.name,))
            for cell in cells
        ]

    def together(self, unit: Unit) -> Hashable:
        """Cells of one group, which share the flow."""
        return unit.subjects[0].group_id

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        """One row per method."""
        (cell,) = unit.subjects
        if cell.cell_id in bench.failed:
            return {"memory": [_row(cell, Attempt("skipped", bench.failed[cell.cell_id].error), None)]}
        attempt = bench.attempt(cell, self.name, lambda: _need(cell, bench))
        if attempt.value is None:
            return {"memory": [_row(cell, attempt, None)]}
        need = attempt.value
        return {
            "memory": [
                _row(cell, attempt, peak, weights_bytes=need.weights_bytes, cache_bytes=need.cache_bytes)
                for peak in need.peaks
            ]
        }


def _need(cell: Cell, bench: Bench) -> Need:
    if cell.device == "cuda":
        return need_of(cell, bench.flow(cell), cuda_peaks)
    try:  # each thread keeps buffers of its own, so their number is the same there
        return FreshProcess(*PRELOAD).run(_need_in_this_process, cell, torch.get_num_threads())
    except ProcessDied as error:
        raise MemoryError(str(error)) from error


def need_of(cell: Cell, flow: CausalFlow, peaks_of: Callable[[Callable[[], Any]], list[Peak]]) -> Need:
    """What one decode of a cell's batch needs.

    The decode of a single sample comes first: it loads code, weights and the libraries' own buffers, which are no
    part of what the decode of a batch needs.
    """
    decoder = cell.build()
    batch_of(cell, flow, range(1)).result(decoder)
    batch = batch_of(cell, flow, range(cell.batch_size))
    peaks = peaks_of(lambda: batch.result(decoder))
    tally = Tally()
    replace(batch, flow=tap(flow, tally)).result(decoder)
    return Need(peaks, weights_bytes(flow), tally.peak_cache_bytes)


def weights_bytes(flow: CausalFlow) -> int | None:
    """Bytes of a flow's parameters and buffers, or None when it is no torch module."""
    if not isinstance(flow, nn.Module):
        return None
    return sum(tensor.nbytes for tensor in {*flow.parameters(), *flow.buffers()})


def _need_in_this_process(cell: Cell, threads: int) -> Need:
    torch.set_num_threads(threads)
    return need_of(cell, cell.load(), lambda call: [resident_peak(call)])


def _row(cell: Cell, attempt: Attempt[Any], peak: Peak | None, **bytes_: int | None) -> dict[str, Any]:
    method = {"cpu": "rss", "cuda": "cuda_allocated"}[cell.device] if peak is None else peak.method
    measured = {} if peak is None else {"peak_bytes": peak.bytes}
    return {**cell.identity, "method": method, **measured, **bytes_, **attempt.outcome}
