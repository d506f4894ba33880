"""The layers of a flow seen apart: each with the exact input and output that some latents give it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.decoders.sequential import solve_sequential
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, jacobi_update


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
        return jacobi_update(self.layer, self.inputs, tokens, self.condition)

    def select(self, rows: Tensor) -> LayerProblem:
        """The problem of some of the samples; `rows` (n,) indexes the batch and may name one several times."""
        return LayerProblem(self.layer, self.inputs[rows], self.exact[rows], self.condition.select(rows))


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
