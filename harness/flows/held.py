"""Weights that a training script holds: a state dict, or a module that has one, wrapped as in its checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import CheckpointError
from harness.flows.wrapped import State, choose, weights_in

logger = logging.getLogger(__name__)


def held_state(held: Mapping[str, Any] | nn.Module, weights: str | None = None) -> State:
    """A copy of the weights as they are now, so that training may go on.

    Raises CheckpointError: neither a mapping nor a module, or as for what a file holds, see `harness.flows.wrapped`.
    """
    whole = held.state_dict() if isinstance(held, nn.Module) else held
    if not isinstance(whole, Mapping):
        raise CheckpointError(
            f"a flow is loaded from a name, a path, a state dict or a module, not from {type(held).__name__}"
        )
    if not (found := weights_in(whole)):
        raise CheckpointError("these weights are no flow of a known family: their tensors have other names")
    try:
        chosen, said = choose(found, whole, weights)
    except CheckpointError as error:
        raise CheckpointError(f"the state dict {error}") from error
    if said is not None and not isinstance(held, nn.Module):  # that a module is wrapped is its owner's doing
        logger.warning("the state dict %s", said)
    for name, tensor in chosen.state.items():
        if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_quantized:
            raise CheckpointError(f"'{name}' of the state dict is no plain tensor of numbers")
    return {name: _copy(tensor) for name, tensor in chosen.state.items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
