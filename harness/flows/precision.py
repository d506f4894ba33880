"""Networks in half precision whose tokens stay in single: iterates, updates and the exponential are float32."""

from __future__ import annotations

from typing import Any, Literal

import torch

HalfName = Literal["bfloat16", "float16"]
HALF: dict[HalfName, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Half-precision dtypes by name."""


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
