"""Measure how autoregressive normalizing flows are sampled: how fast, at what quality, at what memory, and why."""

__version__ = "0.1.0"
