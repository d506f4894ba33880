"""Reverse Kullback-Leibler divergence of a masked autoregressive flow from a density known up to a constant.

``KL(q || pi) = E_q[log q(x) - log pi(x)]`` needs samples x of the flow, and their gradient. A masked autoregressive
flow has no closed form for them: each layer's sample solves ``x = F(x)``, with ``F(x) = (z - b(x)) exp(-a(x))`` in
zuko's signs. It is found by Jacobi iteration, the very method that this project measures, and differentiated through
the solution rather than through the iterations (the implicit function theorem, as in arXiv 1909.01377): with J the
Jacobian of F, the gradient g of x becomes ``w = (I - J')^-1 g``, itself the solution of ``w = g + J' w``. J is
nilpotent, so both iterations end after L steps at most and the gradient is exact up to the tolerance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4
"""Infinity norm of the last update, of a sample and, relative to the gradient, of its gradient."""


def reverse_kl(flow: nn.Module, log_density: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
    """``log q(x) - log pi(x)`` of samples of a flow, in nats; its gradient is that of the path alone.

    The parameters act on ``log q(x)`` through x and directly. The direct part has mean zero and is left out (arXiv
    1703.09194; for flows 2207.08219), so that the gradient's variance vanishes as q approaches pi. Returns (B,), whose
    mean is an unbiased estimate of the divergence less the log of pi's integral, and its gradient one of the
    divergence's.

    Args:
        flow: a zuko `MAF`.
        log_density: log pi, (B, L) -> (B,).
        noise: (B, L) draws of the flow's base.
    """
    samples = sample(flow, noise)
    return copy.deepcopy(flow).requires_grad_(False)().log_prob(samples) - log_density(samples)


def sample(flow: nn.Module, noise: Tensor) -> Tensor:
    """Samples of a flow, differentiable in its parameters: (B, L) draws of the base -> (B, L)."""
    tokens = noise
    for transform in reversed(flow.transform.transforms):  # type: ignore[union-attr, arg-type]
        meta = transform(None).meta  # the affine map that some tokens call for
        tokens = solve(lambda x, meta=meta, noise=tokens: meta(x).inv(noise), tokens)  # type: ignore[misc]
    return tokens


def solve(update: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The fixed point of a strictly causal map F, differentiable in whatever F depends on: (B, L) -> (B, L)."""
    with torch.no_grad():
        found = fixed_point(update, start)
    point = found.detach().requires_grad_()
    value = update(point)

    def solve_transposed(gradient: Tensor) -> Tensor:
        def transposed(w: Tensor) -> Tensor:
            return gradient + torch.autograd.grad(value, point, w, retain_graph=True)[0]

        return fixed_point(transposed, gradient, scale=float(gradient.abs().max()))

    solution = value.clone()  # the hook is on the clone, so that products with J' do not call it again
    if solution.requires_grad:
        solution.register_hook(solve_transposed)
    return solution


def fixed_point(update: Callable[[Tensor], Any], start: Tensor, scale: float = 1.0) -> Tensor:
    """Iterate ``x <- F(x)`` until the infinity norm of the update is within the tolerance, at most L times."""
    tokens = start
    for _ in range(start.shape[1]):
        following = update(tokens)
        change = float((following - tokens).detach().abs().max())
        tokens = following
        if change <= TOLERANCE * scale:
            break
    return tokens
