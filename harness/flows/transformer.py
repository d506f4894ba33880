"""The network of a TarFlow's layer: causal transformer layers over a window of tokens and a cached prefix.

Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.flows.compiled import compiles, tokenwise
from harness.flows.protocols import Condition, Place


@dataclass(frozen=True)
class Context:
    """What a layer's network is told besides the tokens; the same at every call of a solve.

    Args:
        offset: (rows or 1, L, C) position and class embeddings, in the layer's order, added after `proj_in`.
        logit_scale: (rows, 1, 1, 1) factor on the attention logits, or None for 1.
    """

    offset: Tensor
    logit_scale: Tensor | None
    masked_lags: range | None = None


class KeyValueCache:
    """Keys and values of every transformer layer for all L positions, allocated once.

    `data` is (layers, 2, rows, heads, L, head_dim), where rows is the batch, twice that under guidance. `context` is
    that of `condition` in the layer `block`, computed once.
    """

    def __init__(self, data: Tensor, condition: Condition, context: Context, block: int) -> None:
        self.data, self.condition, self.context, self.block = data, condition, context, block
        self.layers = data.unbind(0)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


@dataclass(frozen=True)
class Placed:
    """A window whose place only the device knows.

    Args:
        index: (W,) positions; what is beyond the sequence shares its last one, at which no window looks.
        bias: (W, S) of the logits: 0 where a position of the window may look, else -inf.
    """

    index: Tensor
    bias: Tensor


def placed(place: Place, window: int, num_tokens: int, like: Tensor) -> Placed:
    """Where a window of so many tokens of the sequence is, with a bias in the dtype of `like` and on its device."""
    positions = place.start + torch.arange(window, device=like.device)
    behind = torch.arange(place.bound, device=like.device) > positions[:, None]
    bias = like.new_zeros(window, place.bound).masked_fill_(behind, -math.inf)
    return Placed(positions.clamp(max=num_tokens - 1), bias)


@lru_cache(maxsize=64)
def _window_mask(window: int, start: int, device: torch.device) -> Tensor:
    """(W, start + W) True where a window position may look: at the prefix and at the window up to itself.

    On CUDA it is said rather than made, and the fused kernel for causal attention takes it.
    """
    if device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right  # which loads torch's compiler

        return causal_lower_right(window, start + window)
    return torch.ones(window, start + window, dtype=torch.bool, device=device).tril(start)


@lru_cache(maxsize=64)
def _lag_mask(window: int, start: int, masked: range, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_window_mask` without the lags `masked`, and (W, 1) True where it leaves a position anything to look at.

    A position that is left nothing may look everywhere in the mask, so that its softmax is defined; what it sees is
    to be dropped.
    """
    lags = torch.arange(start, start + window, device=device)[:, None] - torch.arange(start + window, device=device)
    mask = (lags >= 0) & ~((lags >= masked.start) & (lags < masked.stop))
    some = mask.any(dim=1, keepdim=True)
    return mask | ~some, some


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that runs in float32 or wider, whatever the network's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float()).to(x.dtype)
        return super().forward(x)


class Attention(nn.Module):
    """Pre-norm causal self-attention of a window on itself and on a cached prefix."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.head_dim = head_dim

    def forward(self, x: Tensor, cache: Tensor | None, start: int | Placed, context: Context) -> Tensor:
        """(rows, W, C) -> (rows, W, C).

        Args:
            cache: (2, rows, heads, L, head_dim) keys and values, whose positions [0, start) are filled.
        """
        rows, window, channels = x.shape
        qkv = tokenwise(_normed_qkv, self, x).view(rows, window, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        if cache is None:
            q, k, v = qkv.unbind(0)
        elif isinstance(start, Placed):
            cache.index_copy_(-2, start.index, qkv[1:])
            q, (k, v) = qkv[0], cache[..., : start.bias.shape[1], :].unbind(0)
        else:
            cache[..., start : start + window, :] = qkv[1:]
            q, (k, v) = qkv[0], cache[..., : start + window, :].unbind(0)
        if context.logit_scale is not None:
            q = q * context.logit_scale
        if isinstance(start, Placed):
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=start.bias)
        elif context.masked_lags is None:
            mask = _window_mask(window, start, x.device) if start and window > 1 else None
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=start == 0 and window > 1)
        else:
            mask, some = _lag_mask(window, start, context.masked_lags, x.device)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).where(some, 0.0)
        return self.proj(x.transpose(1, 2).reshape(rows, window, channels))


class MLP(nn.Module):
    """Pre-norm feed-forward network, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.main = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(self.norm(x))


class TransformerLayer(nn.Module):
    """Attention, then MLP, each with a residual connection."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.attention = Attention(channels, head_dim)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor, cache: Tensor | None, start: int | Placed, context: Context) -> Tensor:
        if compiles(x.device.type):
            return tokenwise(_add_and_mlp, self.mlp, x, self.attention(x, cache, start, context))
        x = x + self.attention(x, cache, start, context)  # not by the function: an argument would live on in memory
        return x + self.mlp(x)


def _normed_qkv(attention: Any, x: Tensor) -> Tensor:
    return attention.qkv(attention.norm(x))


def _add_and_mlp(mlp: Any, x: Tensor, added: Tensor) -> Tensor:
    x = x + added
    return x + mlp(x)
