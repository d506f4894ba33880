"""Sequential decoding without a cache: a full forward pass for every token, the dearest exact baseline."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.decoders.decoder import Decoder, LayerTrace, decoders
from harness.decoders.solver import exact_trace
from harness.flows.protocols import CausalLayer, Condition


@decoders.register("uncached")
@dataclass(kw_only=True)
class Uncached(Decoder):
    """Sequential decoding that evaluates the whole sequence in every step (SeJD, arXiv 2505.24791, Sec. E.3).

    What the paper measures Jacobi decoding of masked autoregressive flows against, and what zuko's own inverse costs:
    (L - 1)^2 token evaluations a layer. A flow whose layers cache what a prefix determines needs none of this:
    `sequential` gives the same samples.
    """

    takes_tau = False

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        tokens = inputs.clone()
        steps = layer.num_tokens - 1
        for position in range(1, steps + 1):
            tokens[:, position] = layer.update(inputs, tokens[:, :-1], None, 0, condition)[:, position - 1]
        return tokens, exact_trace(layer, "uncached", tokens, steps**2 * condition.passes)
