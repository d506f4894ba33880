"""Layers that may not look at the o nearest predecessors of a token, in the readings of `redundancy`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.decoders.sequential import solve_sequential
from harness.errors import HarnessError, unknown
from harness.flows.calls import jacobi_update
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, MasksAttention

READINGS = ("attention", "attention-self", "input")


class Restriction(Protocol):
    """What a layer is restricted to, and its output then."""

    def output(self, layer: CausalLayer, inputs: Tensor, predecessors: Tensor, condition: Condition) -> Tensor:
        """(B, L, D) outputs for z_in `inputs`, each token from those of `predecessors` that it may look at.

        Args:
            inputs: (B, L, D) z_in, in the layer's order.
            predecessors: (B, L, D) outputs of the layer, such as the exact ones.
        """
        ...

    def decode(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> Tensor:
        """(B, L, D) outputs for z_in `inputs`, token after token, each from those drawn before that it may look at."""
        ...


def restriction(flow: CausalFlow, reading: str, o: int) -> Restriction:
    """The restriction of a reading to what lies before the o nearest predecessors.

    Raises:
        HarnessError: an unknown reading, or one that this flow does not have.
    """
    if reading not in READINGS:
        raise unknown("reading", reading, READINGS)
    if reading == "input":
        return Zeroed(o)
    if not isinstance(flow, MasksAttention):
        raise HarnessError(f"the attention of this flow cannot be masked, so reading '{reading}' says nothing of it")
    return Masked(flow, range(o) if reading == "attention" else range(1, o + 1))


@dataclass(frozen=True)
class Masked:
    """Attention that does not see the keys at some lags."""

    flow: MasksAttention  # whose attention it is
    lags: range  # of the keys from the query; the query that gives the parameters of token l is at position l - 1

    def output(self, layer: CausalLayer, inputs: Tensor, predecessors: Tensor, condition: Condition) -> Tensor:
        return jacobi_update(layer, inputs, predecessors, self._masked(condition))

    def decode(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> Tensor:
        return solve_sequential(layer, inputs, self._masked(condition))[0]

    def _masked(self, condition: Condition) -> Condition:
        return self.flow.mask_attention(condition, self.lags)


@dataclass(frozen=True)
class Zeroed:
    """Token l from a window of its own behind the true prefix x[<l-o], with zeros for the o tokens left out."""

    o: int

    def output(self, layer: CausalLayer, inputs: Tensor, predecessors: Tensor, condition: Condition) -> Tensor:
        """L - 1 calls of o tokens, from right to left, so that a window overwrites only what is not needed any more."""
        if self.o == 0:
            return jacobi_update(layer, inputs, predecessors, condition)
        cache = layer.new_cache(len(inputs), condition)
        layer.affine(predecessors[:, :-1], cache, 0, condition)
        zeros, outputs = torch.zeros_like(inputs), [inputs[:, :1]]
        for position in range(layer.num_tokens - 1, 0, -1):
            start = max(0, position - self.o)
            outputs.insert(1, layer.update(inputs, zeros[:, start:position], cache, start, condition)[:, -1:])
        return torch.cat(outputs, dim=1)

    def decode(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> Tensor:
        """L - 1 calls of o + 1 tokens: the last one that may be seen, which joins the cached prefix, and the zeros."""
        tokens, cache = inputs.clone(), layer.new_cache(len(inputs), condition)
        for position in range(1, layer.num_tokens):
            start = max(0, position - self.o - 1)
            window = torch.zeros_like(tokens[:, start:position])
            if position > self.o:
                window[:, 0] = tokens[:, start]
            tokens[:, position] = layer.update(inputs, window, cache, start, condition)[:, -1]
        return tokens
