"""Timing: paired rounds, in each of which every decoder of a group decodes the same batch once."""

from __future__ import annotations

import gc
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from harness.decoders import build_decoder
from harness.decoders.exact import ExactBatch
from harness.flows import CausalFlow
from harness.flows.calls import encode_tokens
from harness.flows.compiled import network_of
from harness.flows.graphs import captures, graphs_of
from harness.flows.precision import products
from harness.measure.cells import BASELINE, Cell, groups
from harness.measure.units import Attempt, Bench, Rows, Unit, denoise, nonfinite_retries, require_finite
from harness.measure.workers.device_state import watch
from harness.metrics.timing import timed

SENTINELS = 3
"""Decodes whose median is a sentinel, at most."""
SENTINEL_S = 1.0
"""Seconds after which a sentinel is not repeated."""


class Timed(NamedTuple):
    """Seconds of a decode, or of an encode; of a decode how it called the network, seconds of the denoising step after
    it, and what it had to do again."""

    wall_s: float
    calls: str = ""
    network: str = ""
    denoise_s: float | None = None
    nonfinite_retries: int = 0


@dataclass(frozen=True)
class TimingTask:
    """Rounds of a group, one unit each; all that are missing are measured by one process, alone on its device."""

    rounds: int  # per group
    warmup: int  # decodes of every cell before the first round of a group in a process

    name: ClassVar[str] = "timing"
    exclusive: ClassVar[bool] = True

    def units(self, cells: Sequence[Cell]) -> list[Unit]:
        return [
            Unit(
                title=f"{members[0].flow}, batch {members[0].batch_size}, round {number + 1} of {self.rounds}",
                subjects=tuple(members),
                cost=len(members) * (1 + members[0].batch_size / 16),
                key={"round": number},
                tables=("timings",),
            )
            for members in groups(list(cells)).values()
            for number in range(self.rounds)
        ]

    def together(self, unit: Unit) -> Hashable:
        return unit.subjects[0].group_id

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        """One round: decode every cell once and encode once, in shuffled order; and in what state the device was."""
        first: Cell = unit.subjects[0]
        batch = bench.batch(first, range(first.batch_size))
        rounds = max(self.warmup, int(first.device == "cuda"))  # nothing may be compiled or captured in those kept
        warm = bench.keep(
            "warm",
            first.group_id,
            lambda: [self._round((*unit.subjects, None), bench, batch) for _ in range(rounds)],
        )
        names = {"group_id": first.group_id, "session": bench.session}
        number, sentinels = unit.key["round"], []
        if number in (0, self.rounds // 2):
            sentinels.append(self._sentinel(first, "middle" if number else "start", bench, batch))
        with watch(first.device) as conditions:
            timings = self._timings(unit, bench, batch, warm[0] if warm else {})
        if number == self.rounds - 1:
            sentinels.append(self._sentinel(first, "end", bench, batch))
        return {
            "timings": timings,
            "devices": [names | {"round": number, **conditions}],
            "sentinels": [names | sentinel for sentinel in sentinels],
        }

    def _sentinel(self, cell: Cell, place: str, bench: Bench, batch: ExactBatch) -> dict[str, Any]:
        """The baseline once more, whatever the matrix measures: the median of up to three decodes of the batch."""
        decoder = build_decoder(BASELINE)

        def once() -> float:
            return timed(lambda: batch.result(decoder), cell.device)[0]

        def several() -> float:
            if cell.device == "cuda":
                bench.keep("sentinel", cell.group_id, once)
            times = [once()]
            while len(times) < SENTINELS and sum(times) < SENTINEL_S:
                times.append(once())
            return float(np.median(times))

        gc.collect()
        attempt = bench.attempt(cell, "sentinel", several)
        return {"place": place, "wall_s": attempt.value, **attempt.outcome}

    def _timings(self, unit: Unit, bench: Bench, batch: ExactBatch, warm: Mapping[Cell | None, Attempt[Timed]]) -> Rows:
        first = unit.subjects[0]
        order = np.random.default_rng([int(first.group_id, 16), unit.key["round"]]).permutation(len(unit.subjects) + 1)
        turns = [(*unit.subjects, None)[index] for index in order]
        taken = self._round(turns, bench, batch)
        encoded = taken[None].value
        encode_s = encoded and encoded.wall_s
        rows = []
        for cell in unit.subjects:
            row = describe(cell, batch.flow) | {"session": bench.session, **unit.key, "position": turns.index(cell)}
            row |= {"encode_s": encode_s, **taken[cell].outcome}
            if cell in warm and (first_decode := warm[cell].value):
                row["warmup_s"] = first_decode.wall_s
            if timed_ := taken[cell].value:
                row |= timed_._asdict() | {"images_per_s": cell.batch_size / timed_.wall_s}
                row["forward_ratio"] = encode_s and timed_.wall_s / encode_s
            rows.append(row)
        return rows

    def _round(
        self, turns: Sequence[Cell | None], bench: Bench, batch: ExactBatch
    ) -> dict[Cell | None, Attempt[Timed]]:
        """What each cell's decode took, and one encode where a turn is None."""
        gc.collect()  # once a round: it takes as long as many a decode, and is held off while the clock runs
        captured = any(json.loads(cell.options)["cuda_graphs"] for cell in turns if cell)
        return {
            cell: self._encode(batch, captured) if cell is None else self._decode(cell, bench, batch) for cell in turns
        }

    def _decode(self, cell: Cell, bench: Bench, batch: ExactBatch) -> Attempt[Timed]:
        if cell.cell_id in bench.failed:
            return bench.failed[cell.cell_id]

        def measure() -> Timed:
            decoder, sigma = bench.decoder(cell), cell.denoise
            seconds, result = timed(lambda: batch.result(decoder), cell.device)
            require_finite(result)
            apart = None if sigma is None else timed(lambda: denoise(result, batch, sigma), cell.device)[0]
            calls = "captured" if decoder.captured(batch.flow) else "eager"
            return Timed(seconds, calls, network_of(cell.device), apart, nonfinite_retries(result))

        attempt = bench.attempt(cell, self.name, measure)
        if not attempt.ok:
            bench.failed[cell.cell_id] = attempt
        return attempt

    @staticmethod
    @torch.no_grad()
    def _encode(batch: ExactBatch, captured: bool) -> Attempt[Timed]:
        """One forward pass of a batch of this size; what is in the images makes no difference to its cost.

        It is the floor of what decodes take, so it is `captured`, as one graph, where one of them may be.
        """
        flow = batch.flow
        tokens = flow.scale_latents(batch.latents)
        images, key = flow.to_images(tokens), (TimingTask, len(batch))
        captured = captured and captures(flow)
        call = partial(flow.encode, tokens if images is None else images, batch.labels)
        with products(flow.tf32):
            if captured and key not in flow.fits:
                layers, condition = flow.layers, flow.condition(len(batch), batch.labels)
                replay, _ = graphs_of(flow).capture(lambda: encode_tokens(layers, tokens, condition))
                flow.fits[key] = replay, tokens, condition  # what it reads is to stay there
            seconds, _ = timed(flow.fits[key][0] if captured else call, flow.device.type)
        return Attempt("ok", value=Timed(seconds))


DESCRIBED = (
    "cell_id", "cell_key", "group_id", "dataset", "checkpoint", "decoder", "label", "tau", "options", "guidance",
    "denoise", "batch_size", "seed", "device", "dtype",
)  # fmt: skip


def describe(cell: Cell, flow: CausalFlow | None) -> dict[str, Any]:
    """The columns that describe a cell in `cells` and `timings`; those of its flow are null where that is absent."""
    return {name: getattr(cell, name) for name in DESCRIBED} | {
        "num_tokens": flow and flow.num_tokens,
        "num_layers": flow and flow.num_layers,
        "threads": torch.get_num_threads(),
    }
