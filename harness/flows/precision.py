"""Networks in less than single precision; iterates, updates and the exponential stay in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from harness.errors import HarnessError

HalfName = Literal["bfloat16", "float16"]
HALF: dict[HalfName, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Half-precision dtypes by name."""

Dtype = torch.dtype | Literal["tf32"]
"""Of a flow's networks; ``"tf32"`` is float32 whose products are made in TF32 on a GPU, of 10 bits of mantissa."""


def dtype_named(name: str) -> Dtype:
    """Of a name such as ``"bfloat16"``, as matrices have it."""
    return "tf32" if name == "tf32" else getattr(torch, name)


def require_products(dtype: Dtype | str, device: str) -> None:
    """Raises HarnessError: products in TF32 were asked for where there are none."""
    if dtype == "tf32" and device != "cuda":
        raise HarnessError(f"dtype 'tf32' is of a GPU's products, and the device is '{device}'; use 'float32' there")


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    """Products of float32 in TF32 while a flow that asks for it is at work; then as they were."""
    before = torch.get_float32_matmul_precision()
    if tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if tf32:
            torch.set_float32_matmul_precision(before)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16: others emulate them, several times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # an older torch does not tell
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def to_dtype(flow: Any, device: str | torch.device, dtype: Dtype) -> Any:
    """Move a flow: its networks in a dtype, and what acts on tokens, such as the prior's scale, in float32 or wider."""
    require_products(dtype, torch.device(device).type)
    flow.tf32 = dtype == "tf32"
    dtype = torch.float32 if dtype == "tf32" else dtype
    flow = flow.to(device=device, dtype=torch.promote_types(dtype, torch.float32))
    for layer in flow.layers:
        layer.to(dtype=dtype)
    flow.fits.clear()  # fitted to, or captured of, other networks
    return flow
