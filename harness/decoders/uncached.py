"""Sequential decoding without a cache: a full forward pass for every token, the dearest exact baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.decoders.decoder import Decoder, LayerTrace, decoders
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
        """Invert one layer in L - 1 forward passes."""
        tokens = inputs.clone()
        steps = layer.num_tokens - 1
        for position in range(1, steps + 1):
            log_scale, shift = layer.affine(tokens[:, :-1], None, 0, condition)
            here = slice(position - 1, position)
            tokens[:, position : position + 1] = torch.addcmul(
                shift[:, here], inputs[:, position : position + 1], log_scale[:, here].exp()
            )
        finite = bool(tokens.isfinite().all())
        return tokens, LayerTrace(
            layer=layer.number,
            block=layer.block,
            mode="uncached",
            iterations=steps,
            converged=finite,
            residuals=[],
            token_evaluations=steps**2 * condition.passes,
            depth=steps,
            flags=() if finite else ("non-finite",),
        )
