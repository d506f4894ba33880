"""How a decode went inside: `layers`, from a plain decode of each cell, and `residuals`, from one that is watched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch

from harness.flows.tap import tap
from harness.measure.cells import Cell
from harness.measure.units import Bench, CellTask, Rows, Unit, rows_or_failure
from harness.metrics.iterate_errors import ErrorRecorder

TRACED = ("layer", "block", "mode", "iterations", "converged", "state", "depth", "wall_s")
"""What `layers` has of a trace as it is."""


class TraceTask(CellTask, ABC):
    """A task whose table has no status: a cell that fails has a row of `failures`."""

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (cell,) = unit.subjects
        return rows_or_failure(
            self.name, unit, bench, lambda: {self.name: [cell.identity | row for row in self.rows(cell, bench)]}
        )

    @abstractmethod
    def rows(self, cell: Cell, bench: Bench) -> Rows:
        """The rows of a cell, its identity apart."""


class LayersTask(TraceTask):
    """How each layer was solved."""

    name, cost = "layers", 1.0

    def rows(self, cell: Cell, bench: Bench) -> Rows:
        batch, decoder = bench.batch(cell, range(cell.batch_size)), bench.decoder(cell)
        if cell.device == "cuda":  # the first decode compiles and captures, which is no part of a layer's seconds
            batch.result(decoder)
        result = batch.result(decoder)
        return [
            {name: getattr(trace, name) for name in TRACED}
            | {
                "token_evaluations": float(trace.token_evaluations),
                "final_residual": trace.residuals[-1] if trace.residuals else None,
                "flags": ",".join(trace.flags),
            }
            for trace in result.layers
        ]


class ResidualsTask(TraceTask):
    """How far each layer's iterate was from its exact output, call by call."""

    name, cost = "residuals", 3.0

    def rows(self, cell: Cell, bench: Bench) -> Rows:
        flow, batch = bench.flow(cell), bench.batch(cell, range(cell.batch_size))
        recorder = ErrorRecorder(flow.condition(cell.batch_size, batch.labels, batch.guidance))
        with torch.no_grad():
            decoder = replace(bench.decoder(cell), certify=None)  # which would go through the layers once more
            return recorder.rows(replace(batch, flow=tap(flow, recorder)).result(decoder))
