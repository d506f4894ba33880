"""Measure how autoregressive normalizing flows are sampled: how fast, at what quality, at what memory, and why."""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "Decoder": "harness.decoders",
    "Guidance": "harness.decoders",
    "build_decoder": "harness.decoders",
    "load_dataset": "harness.datasets",
    "load_flow": "harness.flows",
    "prepare": "harness.fitting",
    "draw_samples": "harness.measure.sampling",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Loaded when it is first asked for: reading run folders needs no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'harness' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
