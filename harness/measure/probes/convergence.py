"""How fast Jacobi iteration of one layer converges, and why (SeJD, arXiv 2505.24791, Prop. 3.1 and 3.2).

Every layer is given its exact input, so that the layers are seen apart from each other, and everything is computed in
float64. The update ``F(x)[l] = z_in[l] * exp(log_scale(x[<l])) + shift(x[<l])`` has a strictly block lower triangular
Jacobian J: its powers vanish after L, which is why iteration ends, and their norms until then are how errors shrink.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from harness.decoders import Decoder, build_decoder
from harness.decoders.calibration import Calibration, calibration_of
from harness.decoders.exact import LayerProblem
from harness.decoders.initial import INITIAL
from harness.errors import unknown
from harness.flows.protocols import CausalFlow
from harness.measure.cells import Subject
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.units import Bench, Rows, Unit
from harness.options import Count
from harness.runs.tables import INTEGER, REAL, TEXT

GUESSES = (*INITIAL, "fitted")
JACOBIAN_LIMIT = 512
"""Numbers L * D of a sequence up to which Jacobians are written out."""

_LAYER = {"dataset": TEXT, "checkpoint": TEXT, "num_tokens": INTEGER, "layer": INTEGER, "block": INTEGER}

CONVERGENCE = probe_table(
    "convergence",
    ("layer", "initial", "sample", "iteration"),
    {
        "initial": TEXT,
        "sample": INTEGER,
        "iteration": INTEGER,
        "residual": REAL,  # max over tokens and channels of the update; null for iteration 0
        "error_inf": REAL,  # to the sequential output of the layer, max over tokens and channels
        "error_rms": REAL,
    },
    _LAYER,
)
"""One row per flow, layer, initial guess, sample and iteration: Jacobi iteration of one layer given its exact input, in
float64. Iteration 0 is the guess."""

FIXED_POINTS = probe_table(
    "fixed_points",
    ("layer", "initial", "sample"),
    {
        "initial": TEXT,
        "sample": INTEGER,
        "iterations": INTEGER,  # after which no bit changes any more, at most L - 1; null where it was cut short
        "latest_token": INTEGER,  # most that a token settled after the iteration of its own place l; at most 0
        "error_inf": REAL,  # of the fixed point to the sequential output: what rounding in another order makes
    },
    _LAYER,
)
"""One row per flow, layer, initial guess and sample: where that iteration came to its end (Prop. 3.2)."""

JACOBIANS = probe_table(
    "jacobians",
    ("layer", "sample", "power"),
    {"sample": INTEGER, "power": INTEGER, "norm_spectral": REAL, "norm_frobenius": REAL},
    _LAYER,
)
"""One row per flow, layer, sample and power: norms of powers of the Jacobian of one Jacobi iteration."""


@probes.register("convergence")
@dataclass(kw_only=True)
class Convergence(Probe):
    """Jacobi iteration of every layer in float64: residual and error, exact end, and norms of the Jacobian's powers."""

    tables = (CONVERGENCE, FIXED_POINTS, JACOBIANS)
    dtype = "float64"

    samples: Annotated[Count, Field(description="Latents that are decoded.")] = 8
    initial: Annotated[tuple[str, ...], Field(description="Initial guesses.")] = GUESSES
    iterations: Annotated[int | None, Field(ge=1, description="At most; by default until nothing changes.")] = None
    jacobians: Annotated[int, Field(ge=0, description="Samples whose Jacobians are computed, on small flows.")] = 4

    def reads(self) -> list[tuple[Decoder, int]]:
        return [(build_decoder("fitted"), self.samples)] if "fitted" in self.initial else []

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        for name in self.initial:
            if name not in GUESSES:
                raise unknown("initial guess", name, GUESSES)
        small = flow.num_tokens * flow.token_dim <= JACOBIAN_LIMIT
        layers = range(1, flow.num_layers + 1)
        return [
            Unit(
                f"layer {n} from {name}",
                (subject,),
                key={"layer": n, "initial": name},
                tables=("convergence", "fixed_points"),
            )
            for n in layers
            for name in self.initial
        ] + [
            Unit(f"layer {n}, Jacobian", (subject,), key={"layer": n}, tables=("jacobians",))
            for n in layers
            if small and self.jacobians
        ]

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        problems = bench.keep("problems", (subject.cell_id, self.samples), lambda: self._problems(subject, bench))
        problem = problems[unit.key["layer"] - 1]
        place = {"layer": problem.layer.number, "block": problem.layer.block}
        if "initial" not in unit.key:
            count = min(self.jacobians, self.samples)
            rows = [place | row for sample in range(count) for row in power_rows(problem, sample)]
            return {"jacobians": rows}
        place["initial"] = unit.key["initial"]
        if unit.key["initial"] == "fitted":  # in float32, as decoders are
            calibration = bench.keep(
                "calibration", subject.cell_id, lambda: calibration_of(replace(subject, dtype="float32").load())
            )
            start = fitted(calibration, problem)
        else:
            start = INITIAL[unit.key["initial"]](problem.layer, problem.inputs)
        steps, ends = iterate(problem, start, self.iterations)
        return {"convergence": [place | row for row in steps], "fixed_points": [place | row for row in ends]}

    def _problems(self, subject: Subject, bench: Bench) -> list[LayerProblem]:
        return list(bench.batch(subject, range(self.samples)).layers())


def fitted(calibration: Calibration, problem: LayerProblem) -> Tensor:
    """(B, L, D) the guess that was fitted to this layer."""
    guess = calibration.fit(problem.layer).guess
    return guess(problem.inputs.float(), problem.condition.labels).to(problem.inputs)


@torch.no_grad()
def iterate(problem: LayerProblem, start: Tensor, limit: int | None = None) -> tuple[Rows, Rows]:
    """Jacobi iteration of one layer from a guess, until it changes nothing more.

    Args:
        start: (B, L, D) guess; its first token is replaced by that of z_in, which is known.
        limit: iterations at most; by default L, which are always enough (Prop. 3.2).

    Returns:
        Rows of `convergence`, one per sample and iteration, 0 being the guess, up to the first that changes nothing;
        and rows of `fixed_points`, one per sample.
    """
    length = problem.layer.num_tokens
    tokens = start.clone()
    tokens[:, 0] = problem.inputs[:, 0]
    residual = torch.full((len(tokens),), torch.nan)
    settled = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    running = torch.ones(len(tokens), dtype=torch.bool)
    steps: Rows = []
    for iteration in range(min(limit or length, length) + 1):
        if iteration:
            update = problem.update(tokens)
            settled[(update != tokens).any(dim=2)] = iteration
            residual, tokens = _infinity(update - tokens).cpu(), update
        error = tokens - problem.exact
        error_inf, error_rms = _infinity(error), error.square().mean(dim=(1, 2)).sqrt()
        steps += [
            {
                "sample": sample,
                "iteration": iteration,
                "residual": float(residual[sample]) if iteration else None,
                "error_inf": float(error_inf[sample]),
                "error_rms": float(error_rms[sample]),
            }
            for sample in running.nonzero().flatten().tolist()
        ]
        running &= residual != 0
        if not running.any():
            break
    late = settled - torch.arange(length, device=tokens.device)
    ends = [
        {
            "sample": sample,
            "iterations": None if running[sample] else int(settled[sample].max()),
            "latest_token": int(late[sample, 1:].max()),
            "error_inf": float(error_inf[sample]),
        }
        for sample in range(len(tokens))
    ]
    return steps, ends


def update_jacobian(problem: LayerProblem, sample: int = 0) -> Tensor:
    """(L*D, L*D) Jacobian of one Jacobi iteration at the fixed point of one sample: strictly block lower triangular."""
    one = problem.select(torch.tensor([sample]))
    size = one.exact.numel()
    jacobian = torch.autograd.functional.jacobian(one.update, one.exact, vectorize=True)
    return jacobian.reshape(size, size)


def power_rows(problem: LayerProblem, sample: int) -> Iterator[dict[str, Any]]:
    """Norms of the powers 1..L of the update's Jacobian at the fixed point of one sample.

    ``error after t iterations = J^t * error before`` to first order, so the spectral norm of J^t bounds what is left;
    the spectral radius is 0 whatever the norms, since J is nilpotent.
    """
    jacobian = update_jacobian(problem, sample)
    power = torch.eye(len(jacobian), dtype=jacobian.dtype, device=jacobian.device)
    for exponent in range(1, problem.layer.num_tokens + 1):
        power = jacobian @ power
        yield {
            "sample": sample,
            "power": exponent,
            "norm_spectral": float(torch.linalg.matrix_norm(power, ord=2)),
            "norm_frobenius": float(torch.linalg.matrix_norm(power)),
        }


def _infinity(update: Tensor) -> Tensor:
    return update.abs().amax(dim=(1, 2))
