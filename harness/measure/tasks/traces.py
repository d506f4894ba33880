"""The layers pass, one plain decode per cell, and the residuals pass, a second one that is recorded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch

from harness.flows.tap import tap
from harness.measure.cells import Cell
from harness.measure.units import Bench, Rows, Unit, decode
from harness.metrics.iterate_errors import ErrorRecorder
from harness.runs.store import RunStore


class TracePass:
    """A pass with one unit per cell whose table has no status: a failure is a row of the table `failures`."""

    name: ClassVar[str]
    cost: ClassVar[float]
    exclusive: ClassVar[bool] = False

    def missing(self, cells: Sequence[Cell], store: RunStore) -> list[Unit]:
        """Cells without rows."""
        failures = store.read("failures")
        done = store.cell_ids(self.name) | set(failures.loc[failures["pass"] == self.name, "cell_id"])
        return [
            Unit(f"{cell.dataset}, {cell.title}", (cell,), self.cost * (1 + cell.batch_size / 16))
            for cell in cells
            if cell.cell_id not in done
        ]

    def together(self, unit: Unit) -> Hashable:
        """Cells of one group, which share the flow and the latents."""
        return unit.cells[0].group_id

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        """Rows of one cell."""
        (cell,) = unit.cells
        failed = bench.failed.get(cell.cell_id)
        attempt = failed or bench.attempt(cell, self.name, lambda: self.rows(cell, bench))
        if attempt.value is None:
            return {"failures": [cell.identity | {"pass": self.name, **attempt.outcome}]}
        return {self.name: [cell.identity | row for row in attempt.value]}

    def rows(self, cell: Cell, bench: Bench) -> Rows:
        """Decode, and read the rows off."""
        raise NotImplementedError


class LayersPass(TracePass):
    """How each layer was solved."""

    name, cost = "layers", 1.0

    def rows(self, cell: Cell, bench: Bench) -> Rows:
        """One row per layer."""
        result = decode(bench.decoder(cell), bench.flow(cell), bench.batch(cell))
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


class ResidualsPass(TracePass):
    """How far each layer's iterate was from its exact output, call by call."""

    name, cost = "residuals", 3.0

    def rows(self, cell: Cell, bench: Bench) -> Rows:
        """One row per layer and network call."""
        flow, batch = bench.flow(cell), bench.batch(cell)
        recorder = ErrorRecorder(flow.condition(cell.batch_size, batch.labels, batch.guidance))
        with torch.no_grad():
            return recorder.rows(decode(bench.decoder(cell), tap(flow, recorder), batch))
