"""What is decoded: autoregressive normalizing flows behind one protocol."""

from harness.flows.base import CausalFlow, CausalLayer, Condition, Guidance
from harness.flows.checkpoints import load_flow

__all__ = ["CausalFlow", "CausalLayer", "Condition", "Guidance", "load_flow"]
