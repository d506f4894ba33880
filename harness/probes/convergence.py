"""How fast Jacobi iteration of one layer converges, and why (SeJD, arXiv 2505.24791, Prop. 3.1 and 3.2).

Every layer is given its exact input, so that the layers are seen apart from each other. The update
``F(x)[l] = z_in[l] * exp(log_scale(x[<l])) + shift(x[<l])`` has a strictly block lower triangular Jacobian J: its
powers vanish after L, which is why the iteration ends, and their norms until then are how the error shrinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.decoders.initial import INITIAL
from harness.decoders.sequential import solve_sequential
from harness.errors import unknown
from harness.flows.base import CausalFlow, CausalLayer, Condition


@dataclass(frozen=True)
class LayerProblem:
    """One layer with its exact input and output for some latents.

    Args:
        layer: the layer.
        inputs: (B, L, D) z_in, in the layer's own order.
        exact: (B, L, D) its sequential output.
        condition: what the batch is sampled under.
    """

    layer: CausalLayer
    inputs: Tensor
    exact: Tensor
    condition: Condition

    def update(self, tokens: Tensor) -> Tensor:
        """F: (B, L, D) -> (B, L, D), one Jacobi iteration."""
        log_scale, shift = self.layer.affine(tokens[:, :-1], None, 0, self.condition)
        return torch.cat([self.inputs[:, :1], torch.addcmul(shift, self.inputs[:, 1:], log_scale.exp())], dim=1)


@torch.no_grad()
def layer_problems(flow: CausalFlow, latents: Tensor, labels: Tensor | None = None) -> Iterator[LayerProblem]:
    """Every layer in decoding order, with the input that exact decoding of (B, L, D) latents gives it."""
    condition = flow.condition(len(latents), labels)
    tokens = flow.scale_latents(latents)
    for layer in flow.layers:
        inputs = layer.arrange(tokens)
        exact, _ = solve_sequential(layer, inputs, condition)
        yield LayerProblem(layer, inputs, exact, condition)
        tokens = layer.restore(exact)


@torch.no_grad()
def convergence_rows(
    flow: CausalFlow,
    latents: Tensor,
    labels: Tensor | None = None,
    initial: Sequence[str] = ("zeros", "normal", "input"),
    max_iterations: int | None = None,
) -> Iterator[dict[str, object]]:
    """Rows of the table `convergence`: residual and true error of every layer, initial guess, sample and iteration.

    Iteration 0 is the guess itself. A sample's rows end with the first iteration that changes nothing, or after L.
    Use a float64 flow and latents to see the convergence below single precision.

    Raises:
        HarnessError: an initial guess that does not exist.
    """
    for name in initial:
        if name not in INITIAL:
            raise unknown("initial guess", name, INITIAL)
    limit = min(max_iterations or flow.num_tokens, flow.num_tokens)
    for problem in layer_problems(flow, latents, labels):
        for name in initial:
            tokens = INITIAL[name](problem.layer, problem.inputs)
            tokens[:, 0] = problem.inputs[:, 0]
            residual = torch.full((len(tokens),), torch.nan)
            running = torch.ones(len(tokens), dtype=torch.bool)
            for iteration in range(limit + 1):
                if iteration:
                    update = problem.update(tokens)
                    residual, tokens = _infinity(update - tokens).cpu(), update
                error = tokens - problem.exact
                error_inf, error_rms = _infinity(error), error.square().mean(dim=(1, 2)).sqrt()
                for sample in running.nonzero().flatten().tolist():
                    yield {
                        "layer": problem.layer.number,
                        "block": problem.layer.block,
                        "initial": name,
                        "sample": sample,
                        "iteration": iteration,
                        "residual": float(residual[sample]) if iteration else None,
                        "error_inf": float(error_inf[sample]),
                        "error_rms": float(error_rms[sample]),
                    }
                running &= residual != 0
                if not running.any():
                    break


def update_jacobian(problem: LayerProblem, sample: int = 0) -> Tensor:
    """(L*D, L*D) Jacobian of one Jacobi iteration at the fixed point of one sample: strictly block lower triangular."""
    one = LayerProblem(
        problem.layer,
        problem.inputs[sample : sample + 1],
        problem.exact[sample : sample + 1],
        problem.condition.select(torch.tensor([sample])),
    )
    size = one.exact.numel()
    jacobian = torch.autograd.functional.jacobian(one.update, one.exact, vectorize=True)
    return jacobian.reshape(size, size)


def jacobian_rows(
    flow: CausalFlow, latents: Tensor, labels: Tensor | None = None, samples: int = 4
) -> Iterator[dict[str, object]]:
    """Rows of the table `jacobians`: norms of the powers 1..L of the update's Jacobian, per layer and sample.

    ``error after t iterations = J^t * error before`` to first order, so the spectral norm of J^t bounds what is left;
    the spectral radius is 0 whatever the norms, since J is nilpotent.
    """
    for problem in layer_problems(flow, latents, labels):
        for sample in range(min(samples, len(latents))):
            jacobian = update_jacobian(problem, sample)
            power = torch.eye(len(jacobian), dtype=jacobian.dtype, device=jacobian.device)
            for exponent in range(1, flow.num_tokens + 1):
                power = jacobian @ power
                yield {
                    "layer": problem.layer.number,
                    "block": problem.layer.block,
                    "sample": sample,
                    "power": exponent,
                    "norm_spectral": float(torch.linalg.matrix_norm(power, ord=2)),
                    "norm_frobenius": float(torch.linalg.matrix_norm(power)),
                }


def _infinity(update: Tensor) -> Tensor:
    return update.abs().amax(dim=(1, 2))
