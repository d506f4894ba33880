"""What a network does to each token by itself, compiled for a GPU where torch's compiler works there.

Normalisation, casts, GELU and residual additions are then one kernel each side of a linear map instead of one each.
Attention and the cache are kernels of their own whatever is compiled, and stay outside: so there is nothing to compile
again for a window, a prefix or a batch of another size. Weights reach the compiled code as arguments, so it serves all
layers. On the CPU nothing is compiled: minutes for a tenth of the time, see `benchmarks/tried.md`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

BACKEND = "inductor"


def compiles(device: str) -> bool:
    """Whether networks on this kind of device are compiled here: on CUDA, where torch's compiler works.

    Not inside of what somebody else compiles, as a training loop may: that takes the network as it is.
    """
    return device == "cuda" and not torch.compiler.is_compiling() and _works(device)


@cache
def _works(device: str) -> bool:
    try:  # all the way to a kernel: triton, its C compiler and a folder to write in may each be missing
        return compiled(_is_traced)(torch.zeros(8, device=device)).sum().item() > 0
    except Exception as error:  # each of them has errors of its own
        logger.warning("networks are not compiled, since torch's compiler does not work here: %s", error)
        return False


def network_of(device: str) -> str:
    """What tables call a network on this kind of device: compiled or plain."""
    return "compiled" if compiles(device) else "plain"


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function compiled when it is first called; again for another dtype or where gradients are recorded."""
    return torch.compile(function, backend=BACKEND)


def tokenwise(function: Callable[..., Tensor], module: nn.Module, *tensors: Tensor) -> Tensor:
    """``function(module, *tensors)`` of (rows, W, C) tensors, a function of each token by itself."""
    if not compiles(tensors[0].device.type):
        return function(module, *tensors)
    ready, flat = compiled(function), [one.flatten(0, 1) for one in tensors]
    for one in flat:
        torch._dynamo.maybe_mark_dynamic(one, 0)  # the number of tokens
    return ready(module, *flat).unflatten(0, tensors[0].shape[:2])


def _is_traced(x: Any) -> Any:
    """Its argument plus 1 where a compiler reads it; where one was switched off, its argument."""
    return x + 1 if torch.compiler.is_compiling() else x
