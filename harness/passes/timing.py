"""The timing pass: paired rounds, in each of which every decoder of a group decodes the same batch once."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness.flows import CausalFlow
from harness.metrics.timing import timed
from harness.passes.base import Attempt, Batch, Bench, Rows, Unit, decode, require_finite
from harness.plan import Cell, groups


class TimingPass:
    """Rounds of a group, one unit each, since pairs must be measured in one process.

    Args:
        bench: what is measured with.
        rounds: per group.
        warmup: decodes of every cell before the first round of a group in this process.
    """

    name = "timing"

    def __init__(self, bench: Bench, rounds: int, warmup: int) -> None:
        self.bench, self.rounds, self.warmup = bench, rounds, warmup
        self._warm_group: str | None = None

    def missing(self, cells: Sequence[Cell]) -> list[Unit]:
        """Every round of every group that lacks a row."""
        timings = self.bench.store.read("timings")
        done = set(zip(timings["cell_id"], timings["round"], strict=True))
        return [
            Unit(
                title=f"{members[0].dataset}, batch {members[0].batch_size}, round {number + 1} of {self.rounds}",
                cells=tuple(members),
                cost=len(members) * (1 + members[0].batch_size / 16),
                round=number,
            )
            for members in groups(list(cells)).values()
            for number in range(self.rounds)
            if any((cell.cell_id, number) not in done for cell in members)
        ]

    def measure(self, unit: Unit) -> dict[str, Rows]:
        """One round: decode every cell once and encode once, in shuffled order."""
        first = unit.cells[0]
        flow, batch = self.bench.flow(first), self.bench.batch(first)
        if self._warm_group != first.group_id:
            for _ in range(self.warmup):
                self._round(unit.cells, flow, batch)
            self._warm_group = first.group_id
        order = np.random.default_rng([int(first.group_id, 16), unit.round]).permutation(len(unit.cells) + 1)
        turns = [(*unit.cells, None)[index] for index in order]
        seconds = self._round(turns, flow, batch)
        encode_s = seconds[None].value
        return {
            "timings": [
                describe(cell, flow)
                | {
                    "session": self.bench.session,
                    "round": unit.round,
                    "position": turns.index(cell),
                    "wall_s": (wall_s := seconds[cell].value),
                    "images_per_s": wall_s and cell.batch_size / wall_s,
                    "encode_s": encode_s,
                    "forward_ratio": wall_s and encode_s and wall_s / encode_s,
                    **seconds[cell].outcome,
                }
                for cell in unit.cells
            ]
        }

    def _round(self, turns: Sequence[Cell | None], flow: CausalFlow, batch: Batch) -> dict[Cell | None, Attempt[float]]:
        """Seconds of each cell's decode, and of one encode where a turn is None."""
        gc.collect()  # once a round: it takes as long as many a decode, and is held off while the clock runs
        return {cell: self._encode(flow, batch) if cell is None else self._decode(cell, flow, batch) for cell in turns}

    def _decode(self, cell: Cell, flow: CausalFlow, batch: Batch) -> Attempt[float]:
        if cell.cell_id in self.bench.failed:
            return self.bench.failed[cell.cell_id]

        def measure() -> float:
            decoder = self.bench.decoder(cell)
            seconds, result = timed(lambda: decode(decoder, flow, batch), cell.device)
            require_finite(result)
            return seconds

        attempt = self.bench.attempt(cell, self.name, measure)
        if not attempt.ok:
            self.bench.failed[cell.cell_id] = attempt
        return attempt

    @staticmethod
    @torch.no_grad()
    def _encode(flow: CausalFlow, batch: Batch) -> Attempt[float]:
        """One forward pass of a batch of this size; what is in the images makes no difference to its cost."""
        tokens = flow.scale_latents(batch.latents)
        images = flow.to_images(tokens)
        data = tokens if images is None else images
        seconds, _ = timed(lambda: flow.encode(data, batch.labels), tokens.device.type)
        return Attempt("ok", value=seconds)


def describe(cell: Cell, flow: CausalFlow) -> dict[str, Any]:
    """The columns that describe a cell in `cells` and `timings`."""
    return {
        **cell.identity,
        "group_id": cell.group_id,
        "dataset": cell.dataset,
        "checkpoint": cell.checkpoint,
        "decoder": cell.decoder,
        "label": cell.label,
        "tau": cell.tau,
        "options": cell.options,
        "guidance": cell.guidance,
        "batch_size": cell.batch_size,
        "seed": cell.seed,
        "num_tokens": flow.num_tokens,
        "num_layers": flow.num_layers,
        "device": cell.device,
        "dtype": cell.dtype,
        "threads": torch.get_num_threads(),
    }
