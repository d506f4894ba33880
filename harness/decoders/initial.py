"""Where a fixed-point iteration starts. The fixed point does not depend on it; the number of iterations does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.flows.protocols import CausalLayer


def zeros(layer: CausalLayer, inputs: Tensor) -> Tensor:
    """All tokens zero (SeJD, arXiv 2505.24791, Algorithm 1)."""
    return torch.zeros_like(inputs)


def normal(layer: CausalLayer, inputs: Tensor) -> Tensor:
    """Standard normal numbers, the same for every sample and every call; each layer has its own."""
    generator = torch.Generator().manual_seed(layer.number)
    noise = torch.randn(inputs.shape[1:], generator=generator, dtype=torch.float64)
    return noise.to(inputs).expand_as(inputs).clone()


def layer_input(layer: CausalLayer, inputs: Tensor) -> Tensor:
    """The layer's own input z_in."""
    return inputs.clone()


INITIAL: dict[str, Callable[[CausalLayer, Tensor], Tensor]] = {
    "zeros": zeros,
    "normal": normal,
    "input": layer_input,
}
"""Initial guesses by name: (layer, z_in (B, L, D)) -> a new (B, L, D)."""
