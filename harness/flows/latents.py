"""Latents by index: sample i of a seed is the same in every batch, on every machine, for every decoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.flows.protocols import CausalFlow


def indexed_latents(flow: CausalFlow, seed: int, indices: Sequence[int]) -> Tensor:
    """(n, L, D) standard normal latents of some global sample indices, in the flow's dtype and on its device.

    A counter-based generator (Philox, Salmon et al. 2011) is keyed with the seed and started at the index, so nothing
    depends on how samples are split into batches.

    Args:
        seed: 0 or more, below 2**63; a `HarnessError` for another, of which several would give the same latents.
    """
    if not 0 <= seed < 2**63:
        raise HarnessError(f"a seed is 0 or more and below 2**63, not {seed}")
    shape = (flow.num_tokens, flow.token_dim)
    draws = np.empty((len(indices), *shape))
    for row, index in enumerate(indices):
        bits = np.random.Philox(key=[seed, 0], counter=[0, 0, index, 0])
        draws[row] = np.random.Generator(bits).standard_normal(shape)
    return torch.from_numpy(draws).to(flow.device, flow.dtype)


def cycling_labels(flow: CausalFlow, indices: Sequence[int]) -> Tensor | None:
    """(n,) classes that take turns by sample index, or None for a flow without classes."""
    if not flow.num_classes:
        return None
    return torch.tensor(indices, dtype=torch.long) % flow.num_classes
