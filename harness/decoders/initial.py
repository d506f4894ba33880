"""Where a fixed-point iteration starts. The fixed point does not depend on it; the number of iterations does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.flows.protocols import CausalLayer


def _normal(layer: CausalLayer, inputs: Tensor) -> Tensor:
    """Standard normal numbers, the same for every sample and every call; each layer has its own."""
    generator = torch.Generator().manual_seed(layer.number)
    noise = torch.randn(inputs.shape[1:], generator=generator, dtype=torch.float64)
    return noise.to(inputs).expand_as(inputs).clone()


INITIAL: dict[str, Callable[[CausalLayer, Tensor], Tensor]] = {
    "zeros": lambda layer, inputs: torch.zeros_like(inputs),  # SeJD, arXiv 2505.24791, Algorithm 1
    "normal": _normal,
    "input": lambda layer, inputs: inputs.clone(),
}
"""Initial guesses by name: (layer, z_in (B, L, D)) -> a new (B, L, D)."""
