"""What is learned about a flow so that decoders can be fast: calibration and schedules. Decoders only read it."""

from harness.fitting.prepare import prepare

__all__ = ["prepare"]
