"""What is decoded: autoregressive normalizing flows behind one protocol."""

from harness.flows.checkpoints import load_flow
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, Guidance

__all__ = ["CausalFlow", "CausalLayer", "Condition", "Guidance", "load_flow"]
