"""Where a measurement runs: in fresh processes of this machine, or on the machines of a Ray cluster."""

from harness.measure.workers.process import FreshProcess, ProcessDied

__all__ = ["FreshProcess", "ProcessDied"]
