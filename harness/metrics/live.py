"""Peak memory that is counted rather than measured: the bytes of all tensors alive at once during a call.

It is the same on every machine, and says what a decoder asks for; what an allocator, a kernel's workspace or a
library's own buffers add to it is left to the measured peaks of `harness.metrics.memory`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.metrics.memory import Peak


def live_peak(call: Callable[[], Any]) -> Peak:
    """Most bytes of tensors alive at once among those that a call allocates; what lived before is not counted.

    Example:
        >>> live_peak(lambda: torch.zeros(256) + torch.zeros(256)).bytes  # both terms and their sum, float32
        3072
    """
    with _LiveTensors() as counter:
        call()
    return Peak(counter.peak, "live")


class _LiveTensors(TorchDispatchMode):
    """Sees the output of every operation; a storage counts until it is freed, views of it never."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode whole functions arrive here: what they are made of is what allocates
            parts = func.decompose(*args, **(kwargs or {}))
        if parts is not NotImplemented:
            return parts
        before = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen and storage._cdata not in before:
                self._seen[storage._cdata] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata)
        self.peak = max(self.peak, self.live)
        return out

    def _freed(self, storage: int) -> None:
        self.live -= self._seen.pop(storage)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
