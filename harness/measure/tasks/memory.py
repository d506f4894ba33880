"""Memory: a decode whose peak is measured, and whose caches are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.flows import CausalFlow
from harness.flows.tap import Tally, tap
from harness.measure.cells import Cell
from harness.measure.units import Attempt, Bench, CellTask, Rows, Unit, batch_of
from harness.measure.workers.process import FreshProcess, ProcessDied
from harness.metrics.memory import Peak, cuda_peaks, resident_peak

PRELOAD = ("harness.measure.tasks.memory",)

Call = Callable[[], Any]
Peaks = Sequence[Callable[[Call], Peak]]
KERNELS = {
    "fused": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}
"""Kernels of attention by name: the fused ones never hold a whole matrix of scores, the plain one does."""


class Need(NamedTuple):
    """What a decode needs: measured peaks beyond what was held before, and counted bytes."""

    peaks: list[Peak]
    weights_bytes: int | None
    cache_bytes: int


class MemoryTask(CellTask):
    """On the CPU each cell is measured in a fresh process; on CUDA by torch's allocator, in this one."""

    name, cost = "memory", 2.0

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (cell,) = unit.subjects
        if failed := bench.failed.get(cell.cell_id):
            attempt: Attempt[Need] = Attempt("skipped", failed.error)
        else:
            attempt = bench.attempt(cell, self.name, lambda: need_of(cell, bench.flow))
        if (need := attempt.value) is None:
            method = {"cpu": "rss", "cuda": "cuda_allocated"}[cell.device]
            return {"memory": [cell.identity | {"method": method} | attempt.outcome]}
        shared = cell.identity | {"weights_bytes": need.weights_bytes, "cache_bytes": need.cache_bytes}
        shared |= attempt.outcome
        return {"memory": [shared | {"method": peak.method, "peak_bytes": peak.bytes} for peak in need.peaks]}


def need_of(cell: Cell, flow_of: Callable[[Cell], CausalFlow], counted: Peaks = (), kernel: str | None = None) -> Need:
    """What one decode of a cell's batch needs: on CUDA in this process, on the CPU in a fresh one.

    Args:
        flow_of: the flow of a cell, in this process.
        counted: further peaks, each of a decode of its own.
        kernel: of attention, a name in `KERNELS`, or None for torch's own choice.
    """
    if cell.device == "cuda":
        return _need(cell, flow_of(cell), cuda_peaks, counted, kernel)
    try:  # each thread keeps buffers of its own, so their number is the same there
        return FreshProcess(*PRELOAD).run(_need_here, cell, counted, kernel, torch.get_num_threads())
    except ProcessDied as error:
        raise MemoryError(str(error)) from error


def _need_here(cell: Cell, counted: Peaks, kernel: str | None, threads: int) -> Need:
    torch.set_num_threads(threads)
    return _need(cell, cell.load(), lambda call: [resident_peak(call)], counted, kernel)


def _need(
    cell: Cell, flow: CausalFlow, measured: Callable[[Call], list[Peak]], counted: Peaks, kernel: str | None
) -> Need:
    """The decode of a single sample comes first: it loads code, weights and the libraries' own buffers."""
    with nullcontext() if kernel is None else sdpa_kernel(KERNELS[kernel]):
        decoder = cell.build()
        batch_of(cell, flow, range(1)).result(decoder)
        batch = batch_of(cell, flow, range(cell.batch_size))
        call = partial(batch.result, decoder)
        peaks = [*measured(call), *(count(call) for count in counted)]
        tally = Tally()
        replace(batch, flow=tap(flow, tally)).result(decoder)
    return Need(peaks, weights_bytes(flow), tally.peak_cache_bytes)


def weights_bytes(flow: CausalFlow) -> int | None:
    """Bytes of a flow's parameters and buffers, or None when it is no torch module."""
    if not isinstance(flow, nn.Module):
        return None
    return sum(tensor.nbytes for tensor in {*flow.parameters(), *flow.buffers()})
