"""Measure how autoregressive normalizing flows are sampled: how fast, at what quality, at what memory, and why.

Everything here is loaded when it is first asked for: reading run folders needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.load import load
    from harness.cli.face import recommend, run
    from harness.datasets import load_dataset
    from harness.decoders import Decoder, Guidance, build_decoder
    from harness.decoders.certificate import certify
    from harness.fitting import prepare
    from harness.flows import load_flow
    from harness.measure.sampling import draw_samples, sample

__version__ = "0.2.0"
__all__ = [
    "Decoder", "Guidance", "build_decoder", "certify", "draw_samples", "load", "load_dataset", "load_flow", "prepare",
    "recommend", "run", "sample",
]  # fmt: skip
_HOME = {
    "analysis.load": ("load",),
    "harness.cli.face": ("recommend", "run"),
    "harness.datasets": ("load_dataset",),
    "harness.decoders": ("Decoder", "Guidance", "build_decoder"),
    "harness.decoders.certificate": ("certify",),
    "harness.fitting": ("prepare",),
    "harness.flows": ("load_flow",),
    "harness.measure.sampling": ("draw_samples", "sample"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'harness' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
