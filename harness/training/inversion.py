"""What a few Jacobi iterations leave of a layer's inverse: an error that a flow can be trained to have little of.

Encoding a batch gives every layer's exact output x and the z_in that belongs to it, so the error of decoding that layer
from its input is known without decoding anything, one network call for each iteration (arXiv 2505.24791 leaves open
whether its redundancy can be trained).
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.flows.calls import jacobi_update
from harness.flows.protocols import CausalLayer, Condition

LEAST = 1e-6
"""Variance that a number is taken to have at the least."""


def inversion_error(layer: CausalLayer, inputs: Tensor, exact: Tensor, condition: Condition, iterations: int) -> Tensor:
    """Error that Jacobi iterations from a layer's input leave, as a share of what is to be found; a scalar.

    Of every number of every token but the first, which is given, the mean square of the error over the batch is divided
    by the variance over the batch. So neither the scale nor the offset of any number changes it, and no number counts
    more for being large: a flow cannot lower it but by being easier to invert. Its ``log(1 + error)`` is averaged, lest
    a number that an early iteration blows up outweigh all others.

    Args:
        inputs: (B, L, D) z_in, in the layer's own order.
        exact: (B, L, D) the layer's output.
    """
    tokens = inputs
    for _ in range(iterations):
        tokens = jacobi_update(layer, inputs, tokens, condition)
    squares = (tokens - exact)[:, 1:].square().mean(dim=0)
    return torch.log1p(squares / exact[:, 1:].var(dim=0, unbiased=False).clamp(min=LEAST)).mean()
