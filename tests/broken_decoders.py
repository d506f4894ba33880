"""Decoders that fail, each in its own way, found as broken_decoders:Class."""

from dataclasses import dataclass, replace

import torch

from harness.decoders import Decoder
from harness.decoders.sequential import solve_sequential


@dataclass(kw_only=True)
class Raises(Decoder):
    """Fails at once."""

    takes_tau = False

    def solve(self, layer, inputs, condition):
        raise ValueError(f"layer {layer.number} is\nnot to my liking")


@dataclass(kw_only=True)
class OutOfMemory(Decoder):
    """Asks for more memory than there is."""

    takes_tau = False

    def solve(self, layer, inputs, condition):
        return torch.empty(2**60), None


@dataclass(kw_only=True)
class NotFinite(Decoder):
    """Spoils one sample."""

    takes_tau = False

    def solve(self, layer, inputs, condition):
        tokens, trace = solve_sequential(layer, inputs, condition)
        tokens[0, -1] = float("nan")
        return tokens, trace


@dataclass(kw_only=True)
class FailsWatched(Decoder):
    """Works until somebody looks: fails on a tapped flow only."""

    takes_tau = False

    def decode(self, flow, latents, labels=None, guidance=None):
        if type(flow).__name__.startswith("_Tapped"):
            raise RuntimeError("not while you watch")
        return super().decode(flow, latents, labels, guidance)

    def solve(self, layer, inputs, condition):
        return solve_sequential(layer, inputs, condition)


@dataclass(kw_only=True)
class Overflows(Decoder):
    """Overflows in layer 1, as an iteration may, and leaves the rest to the fallback."""

    takes_tau = False
    fallback: str = "non-finite"

    def solve(self, layer, inputs, condition):
        tokens, trace = solve_sequential(layer, inputs, condition)
        if layer.number > 1:
            return tokens, trace
        return tokens * float("inf"), replace(trace, mode="jacobi", exact=False, converged=False, flags=("non-finite",))
