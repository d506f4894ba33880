"""The passes over a matrix: timing, layers, residuals, samples, quality, memory. Each measures one thing alone."""

from harness.passes.base import Bench, Pass, Unit
from harness.passes.memory import MemoryPass
from harness.passes.quality import QualityPass, SamplesPass
from harness.passes.timing import TimingPass
from harness.passes.traces import LayersPass, ResidualsPass

__all__ = [
    "Bench",
    "LayersPass",
    "MemoryPass",
    "Pass",
    "QualityPass",
    "ResidualsPass",
    "SamplesPass",
    "TimingPass",
    "Unit",
]
