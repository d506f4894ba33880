"""A flow from what a training script holds: a state dict of the published layout, or a module that has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import CheckpointError
from harness.flows.precision import to_dtype
from harness.flows.protocols import CausalFlow, flows

WRAPPERS = ("module.", "_orig_mod.")
"""What names begin with inside `DistributedDataParallel` and `torch.compile`."""


def held_flow(held: Mapping[str, Tensor] | nn.Module, device: str | torch.device, dtype: torch.dtype) -> CausalFlow:
    """A copy of the weights as they are now, so that training may go on; what is fitted to it is kept with it.

    Raises CheckpointError: not a state dict nor a module, or none of a known family.
    """
    state = _state(held)
    for _, family in flows.items():
        if family.recognises(state):
            try:
                return to_dtype(family.from_state(state, {}), device, dtype)
            except CheckpointError as error:
                raise CheckpointError(f"these weights are no flow this harness can read: {error}") from error
    raise CheckpointError(f"these weights are no flow of a known family ({', '.join(flows.names())})")


def _state(held: Any) -> dict[str, Tensor]:
    whole = held.state_dict() if isinstance(held, nn.Module) else held
    if not isinstance(whole, Mapping):
        raise CheckpointError(
            f"a flow is loaded from a name, a path, a state dict or a module, not from {type(held).__name__}"
        )
    for name, tensor in whole.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"the state dict holds {name!r}: {type(tensor).__name__}, expected tensors by name")
        if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_quantized:
            raise CheckpointError(f"'{name}' of the state dict is no plain tensor of numbers")
    names = list(whole)
    while wrapper := next((one for one in WRAPPERS if names and all(name.startswith(one) for name in names)), None):
        names = [name.removeprefix(wrapper) for name in names]
    tensors = (tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for tensor in whole.values())
    return dict(zip(names, tensors, strict=True))
