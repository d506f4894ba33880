"""The passes over a matrix: timing, layers, residuals, samples, quality, memory. Each measures one thing alone."""

from harness.measure.tasks.memory import MemoryPass
from harness.measure.tasks.quality import QualityPass, SamplesPass
from harness.measure.tasks.timing import TimingPass
from harness.measure.tasks.traces import LayersPass, ResidualsPass
from harness.measure.units import Bench, Pass, Unit

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
