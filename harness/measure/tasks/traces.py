"""How a decode went inside: `layers`, from a plain decode of each cell, and `residuals`, from one that is watched."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from harness.flows.tap import tap
from harness.measure.cells import Cell
from harness.measure.units import Bench, Rows, Unit, rows_or_failure
from harness.metrics.iterate_errors import ErrorRecorder


class TraceTask:
    """A task with one unit per cell, whose table has its name and no status."""

    name: ClassVar[str]
    cost: ClassVar[float]
    exclusive: ClassVar[bool] = False

    def units(self, cells: Sequence[Cell]) -> list[Unit]:
        """One per cell."""
        return [
            Unit(f"{cell.dataset}, {cell.title}", (cell,), self.cost * (1 + cell.batch_size / 16), tables=(self.name,))
            for cell in cells
        ]

    def together(self, unit: Unit) -> Hashable:
        """Cells of one group, which share the flow and the latents."""
        return unit.subjects[0].group_id

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        """Rows of one cell."""
        (cell,) = unit.subjects
        return rows_or_failure(
            self.name, unit, bench, lambda: {self.name: [cell.identity | row for row in self.rows(cell, bench)]}
        )

    def rows(self, cell: Cell, bench: Bench) -> Rows:
        raise NotImplementedError


class LayersTask(TraceTask):
    """How each layer was solved."""

    name, cost = "layers", 1.0

    def rows(self, cell: Cell, bench: Bench) -> Rows:
        result = bench.batch(cell, range(cell.batch_size)).result(bench.decoder(cell))
        return [
            {
                "layer": trace.layer,
                "block": trace.block,
                "mode": trace.mode,
                "iterations": trace.iterations,
                "converged": trace.converged,
                "token_evaluations": float(trace.token_evaluations),
                "depth": trace.depth,
                "wall_s": trace.wall_s,
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
            return recorder.rows(replace(batch, flow=tap(flow, recorder)).result(bench.decoder(cell)))
