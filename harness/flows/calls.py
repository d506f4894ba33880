"""What one network call on a whole layer gives: a Jacobi iteration, and the way from data to noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness.flows.protocols import CausalLayer, Condition


def jacobi_update(layer: CausalLayer, inputs: Tensor, tokens: Tensor, condition: Condition) -> Tensor:
    """One Jacobi iteration of a whole layer: (B, L, D) z_in and tokens -> (B, L, D) tokens."""
    return torch.cat([inputs[:, :1], layer.update(inputs, tokens[:, :-1], None, 0, condition)], dim=1)


def invert(layer: CausalLayer, tokens: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
    """A layer's inputs from its outputs, by one call: ``z_in = (x - shift) * exp(-log_scale)``.

    Args:
        tokens: (B, L, D) outputs, in the layer's own order.

    Returns:
        z_in, (B, L, D), and log_scale, (B, L - 1, D), of all tokens but the first, which is passed through.
    """
    log_scale, shift = layer.affine(tokens[:, :-1], None, 0, condition)
    z = (tokens[:, 1:] - shift) * torch.exp(-log_scale)
    return torch.cat([tokens[:, :1], z], dim=1), log_scale


def encode_tokens(
    layers: Sequence[CausalLayer],
    tokens: Tensor,
    condition: Condition,
    see: Callable[[CausalLayer, Tensor, Tensor], None] = lambda layer, inputs, exact: None,
) -> tuple[Tensor, Tensor]:
    """Data to noise through every layer: one network call each, see `invert`.

    Args:
        layers: in decoding order.
        tokens: (B, L, D) data in raster order.
        see: shown every layer with its z_in and its output, (B, L, D) in its own order: what a decoder of the layer
            would be given, and should find.

    Returns:
        latents (B, L, D) and logdet (B,), the sum over layers of ``-mean(log_scale)`` over tokens and channels; token
        0, which is passed through, counts as 0.
    """
    logdet = tokens.new_zeros(len(tokens))
    for layer in reversed(layers):
        exact = layer.arrange(tokens)
        inputs, log_scale = invert(layer, exact, condition)
        see(layer, inputs, exact)
        tokens = layer.restore(inputs)
        logdet = logdet - log_scale.sum(dim=(1, 2)) / (layer.num_tokens * layer.token_dim)
    return tokens, logdet
