"""Peak memory that is counted rather than measured: the bytes of all tensors alive at once during a call.

It is the same on every machine, and says what a decoder asks for; what an allocator, a kernel's workspace or a
library's own buffers add to it is left to the measured peaks of `harness.metrics.memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.decoders.micro_batches import LiveBytes
from harness.metrics.memory import Peak


def live_peak(call: Callable[[], Any]) -> Peak:
    """Most bytes of tensors alive at once among those that a call allocates; what lived before is not counted.

    >>> import torch
    >>> live_peak(lambda: torch.zeros(256) + torch.zeros(256)).bytes  # both terms and their sum, float32
    3072
    """
    with LiveBytes() as counter:
        call()
    return Peak(counter.peak, "live")
