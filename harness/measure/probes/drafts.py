"""Fixed-point iteration of discrete tokens: how many network calls from which first guess, at which temperature.

A discrete token is right or wrong, so an iteration ends when no token changes, exactly: there is no tau to choose. The
whole sequence is iterated, or one row of the image after the other, as GS-Jacobi decoding does in blocks; then a row
can be begun from the one above it, which is known by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from harness.decoders.exact import ExactBatch, LayerProblem
from harness.errors import HarnessError, unknown
from harness.flows import CausalFlow
from harness.flows.checkpoints import checkpoint_path, read_metadata
from harness.flows.discrete import DiscreteFlow, gumbel, one_hot
from harness.measure.cells import Subject
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.units import Bench, Rows, Unit
from harness.options import Count, NonNegative
from harness.runs.tables import FLOW, INTEGER, REAL, TEXT

ABOVE = "row above"
GUESSES: dict[str, Callable[[DiscreteFlow, ExactBatch, LayerProblem], Tensor]] = {
    "blank": lambda flow, batch, problem: torch.zeros_like(problem.inputs),  # level 0; the decoders' "zeros"
    "noise": lambda flow, batch, problem: problem.inputs,  # any level, by the token's own latents; their "input"
    "unigram": lambda flow, batch, problem: _unigrams(flow, problem.inputs),
    "greedy": lambda flow, batch, problem: ExactBatch(flow.tempered(0), batch.latents, batch.labels).exact,
    ABOVE: lambda flow, batch, problem: torch.zeros_like(problem.inputs),  # of which the first row is left
}
"""First guesses by name, (B, L, D) each; a token is the level of its largest number."""

DRAFTS = probe_table(
    "drafts",
    ("temperature", "guess", "window", "sample"),
    {
        "temperature": REAL,  # 0 is greedy
        "guess": TEXT,
        "window": INTEGER,  # tokens that are iterated together
        "levels": INTEGER,  # D, that a token may take
        "sample": INTEGER,
        "bits": REAL,  # entropy that the model leaves a token, given those before it: mean over the exact sample's
        "wrong": REAL,  # share of the tokens that the first guess has wrong
        "calls": INTEGER,  # of the network until nothing changes; sequential decoding takes one a token
        "held_out_bits": REAL,  # per pixel, of the checkpoint
        "beside_bits": REAL,  # the same of the flow that is set beside it: a bound
    },
    FLOW,
)
"""One row per temperature, first guess, window and sample."""


@probes.register("drafts")
@dataclass(kw_only=True)
class Drafts(Probe):
    """Network calls until discrete tokens settle, by temperature, first guess and window; entropy beside them."""

    tables = (DRAFTS,)

    samples: Annotated[Count, Field(description="Latents that are decoded.")] = 64
    temperatures: Annotated[tuple[NonNegative, ...], Field(description="0 is greedy.")] = (
        0.0, 0.25, 0.5, 0.75, 1.0,
    )  # fmt: skip
    guesses: Annotated[tuple[str, ...], Field(description="First guesses.")] = tuple(GUESSES)
    beside: Annotated[str, Field(description="A continuous flow of the same images.")] = "digits"

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        """A row is a window too; only in rows can one be begun from the row above."""
        if not isinstance(flow, DiscreteFlow):
            raise HarnessError(f"'{subject.checkpoint}' has no discrete tokens; the shipped 'discrete-digits' has")
        for name in self.guesses:
            if name not in GUESSES:
                raise unknown("first guess", name, GUESSES)
        keys = [
            {"temperature": temperature, "guess": guess, "window": window}
            for temperature in self.temperatures
            for guess in self.guesses
            for window in (flow.num_tokens - 1, flow.image_shape[2])
            if guess != ABOVE or window < flow.num_tokens - 1
        ]
        title = "temperature {temperature:g}, from {guess}, windows of {window}"
        return [Unit(title.format(**key), (subject,), key=key, tables=("drafts",)) for key in keys]

    @torch.no_grad()
    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        temperature, window = unit.key["temperature"], unit.key["window"]
        batch, problem, bits = bench.keep(
            "drafts", (subject.cell_id, temperature), lambda: self._exact(subject, bench, temperature)
        )
        draft = GUESSES[unit.key["guess"]](batch.flow, batch, problem)
        start, calls = iterate(problem, draft, window, above=unit.key["guess"] == ABOVE)
        wrong = (start != problem.exact)[:, 1:].any(dim=2).double().mean(dim=1)
        common = {
            **unit.key,
            "levels": batch.flow.token_dim,
            "held_out_bits": _held_out(Path(subject.checkpoint_path)),
            "beside_bits": _held_out(checkpoint_path(self.beside)),
        }
        each = enumerate(zip(bits.tolist(), wrong.tolist(), calls.tolist(), strict=True))
        return {"drafts": [common | {"sample": n, "bits": b, "wrong": w, "calls": c} for n, (b, w, c) in each]}

    def _exact(self, subject: Subject, bench: Bench, temperature: float) -> tuple[Any, LayerProblem, Tensor]:
        """The batch at a temperature, its one layer with the exact sample, and (B,) the sample's entropy in bits."""
        drawn: Any = bench.batch(subject, range(self.samples))
        flow = drawn.flow.tempered(temperature)
        batch = ExactBatch(flow, drawn.latents, drawn.labels)
        (problem,) = batch.layers()
        if not temperature:
            return batch, problem, torch.zeros(len(batch))
        log_p, _ = flow.log_probabilities(flow.to_images(problem.exact), batch.labels)
        return batch, problem, torch.special.entr(log_p.double().exp()).sum(dim=2).mean(dim=1) / math.log(2)


def iterate(problem: LayerProblem, draft: Tensor, window: int, above: bool = False) -> tuple[Tensor, Tensor]:
    """Jacobi iteration window by window, each until none of its tokens changes.

    Args:
        draft: (B, L, D) what the windows are begun from.
        above: begin every window but the first from the one before it instead.

    Returns:
        (B, L, D) what they were begun from, one-hot, and (B,) the network calls of each sample, all windows together.
    """
    tokens = torch.cat([problem.inputs[:, :1], one_hot(draft[:, 1:])], dim=1)
    start, calls = tokens.clone(), torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    for first in range(1, tokens.shape[1], window):
        own = slice(first, min(first + window, tokens.shape[1]))
        if above and first > 1:
            tokens[:, own] = tokens[:, first - window : own.stop - window]
        start[:, own] = tokens[:, own]
        running = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        for _ in range(window):  # after as many calls every token is exact
            update = problem.update(tokens)[:, own]
            calls += running
            running = running & (update != tokens[:, own]).flatten(1).any(dim=1)
            tokens[:, own] = update
            if not running.any():
                break
    return start, calls


def _unigrams(flow: DiscreteFlow, inputs: Tensor) -> Tensor:
    """Every token from its own noise and how often its levels are seen, whatever the tokens before it."""
    alone = F.pad(flow.layer.unigram.flatten(1).T, (0, 0, 1, 0)).to(inputs)
    return alone + flow.layer.temperature * gumbel(inputs)


def _held_out(checkpoint: Path) -> float | None:
    stated = read_metadata(checkpoint).get("held_out_bits_per_dim")
    return float(stated) if stated else None
