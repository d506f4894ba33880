"""Networks in half precision whose tokens stay in single: iterates, updates and the exponential are float32."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from harness.errors import HarnessError, unknown
from harness.flows.protocols import CausalLayer

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Half-precision dtypes by name."""


def half_dtype(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        HarnessError: there is none.
    """
    if name not in HALF:
        raise unknown("network_dtype", str(name), HALF)
    return HALF[name]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16: others emulate them, several times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # an older torch does not tell
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def to_dtype(flow: Any, device: str | torch.device, dtype: torch.dtype) -> Any:
    """Move a flow: its networks in a dtype, and what acts on tokens, such as the prior's scale, in float32 or wider."""
    flow = flow.to(device=device, dtype=torch.promote_types(dtype, torch.float32))
    for layer in flow.layers:
        layer.to(dtype=dtype)
    return flow


def in_dtype(layer: CausalLayer, dtype: torch.dtype) -> CausalLayer:
    """A copy of a layer with its network in another dtype; made once for as long as the layer lives.

    Wrappers of layers answer for what they wrap, by a method of this name.

    Raises:
        HarnessError: a layer that is no torch module.
    """
    if hasattr(type(layer), "in_dtype"):
        return layer.in_dtype(dtype)  # type: ignore[attr-defined]
    if not isinstance(layer, nn.Module):
        raise HarnessError(f"network_dtype needs layers that are torch modules, not {type(layer).__name__}")
    copies = _copies.setdefault(layer, {})
    if dtype not in copies:
        with torch.inference_mode(False):
            copies[dtype] = copy.deepcopy(layer).to(dtype=dtype)
    return copies[dtype]


_copies: WeakKeyDictionary[Any, dict[torch.dtype, Any]] = WeakKeyDictionary()
"""Copies of the layers that are alive."""
