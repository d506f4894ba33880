"""Linear causal maps over a token sequence, in a layer's own order: what guesses and corrections are made of.

Where a sequence is long its maps are *lagged*: a token looks at a few predecessors, with weights that all positions
share. Where it is short (`DENSE`) they are *dense*: every position looks at all of its predecessors, with weights of
its own.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DENSE = 256
"""Numbers in a sequence, L * D, up to which its maps are dense."""


class LaggedMap(nn.Module):
    """``y[l] = sum_k A_k x[l - k]``, the same for every position and class; tokens before the first count as 0.

    Args:
        lags: k >= 0, ascending.
        weight: (lags * D, D), lag-major.
    """

    weight: Tensor
    gathered = 0

    def __init__(self, lags: tuple[int, ...], weight: Tensor) -> None:
        super().__init__()
        if weight.ndim != 2 or weight.shape[0] != len(lags) * weight.shape[1]:
            raise ValueError(f"a map of lags {lags} cannot have a weight of shape {tuple(weight.shape)}")
        if not lags or min(lags) < 0 or lags != tuple(sorted(set(lags))):
            raise ValueError(f"lags {lags} are not ascending from 0 or more")
        self.lags: tuple[int, ...] | None = lags
        self.register_buffer("weight", weight)

    @property
    def strictly_causal(self) -> bool:
        return self.lags is not None and self.lags[0] >= 1

    def features(self, tokens: Tensor) -> Tensor:
        """(B, W, D) -> (B, W, lags * D), which maps of the same lags share."""
        assert self.lags is not None
        return lagged(tokens, self.lags)

    def span(self, features: Tensor, labels: Tensor | None, start: int, first: int, end: int) -> Tensor:
        """(B, end - first, D): the map's values for the tokens first..end-1 of a window; see `DenseMap.span`."""
        return features[:, first:end] @ self.weight

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.features(tokens) @ self.weight


class DenseMap(nn.Module):
    """``y[l] = sum_m A_clm x[m]``, with a matrix for every class c and pair of positions.

    Args:
        weight: (C + 1, L, D, L, D), from token m and number to token l and number, 0 where m > l; the last class is
            none. C is 0 for an unconditional flow.
    """

    lags = None
    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if weight.ndim != 5 or weight.shape[1:3] != weight.shape[3:]:
            raise ValueError(f"a dense map cannot have a weight of shape {tuple(weight.shape)}")
        self.register_buffer("weight", weight)

    @property
    def strictly_causal(self) -> bool:
        """Whether no token looks at itself, nor at later ones."""
        return not torch.tril(self.weight.abs().amax(dim=(0, 2, 4))).any()

    @property
    def gathered(self) -> int:
        """Numbers that a call holds for each sample: at most its class's weights."""
        return self.weight[0].numel() if len(self.weight) > 1 else 0

    def features(self, tokens: Tensor) -> Tensor:
        """(B, W, D) -> (B, W * D)."""
        return tokens.flatten(1)

    def span(self, features: Tensor, labels: Tensor | None, start: int, first: int, end: int) -> Tensor:
        """(B, end - first, D): the map's values for the tokens first..end-1 of a window.

        Args:
            features: of a window; what is outside of it counts as 0.
            labels: (B,) classes, negative for none.
            start: position of the window's first token.
            first: of the tokens wanted, counted from the window's first.
            end: behind the last of them.
        """
        batch, numbers = features.shape
        dim = self.weight.shape[2]
        matrices = self.weight.flatten(3).flatten(1, 2)  # (C + 1, L * D, L * D)
        sources, targets = slice(start * dim, start * dim + numbers), slice((start + first) * dim, (start + end) * dim)
        weight = matrices[:, sources, targets][entry(labels, len(matrices) - 1)]
        return (features[:, None] @ weight).view(batch, end - first, dim)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.span(self.features(tokens), labels, 0, 0, tokens.shape[1])


CausalMap = LaggedMap | DenseMap


def causal_map(lags: tuple[int, ...] | None, weight: Tensor) -> CausalMap:
    """The map of some lags, or the dense one for None."""
    return DenseMap(weight) if lags is None else LaggedMap(lags, weight)


class Guess(nn.Module):
    """``x ~ bias[c] + A z_in`` for a sample of class c.

    Args:
        causal: A.
        bias: (C + 1, L, D), the last for samples without a class; C is 0 for an unconditional flow.
    """

    bias: Tensor

    def __init__(self, causal: CausalMap, bias: Tensor) -> None:
        super().__init__()
        if bias.ndim != 3 or bias.shape[2] != causal.weight.shape[-1]:
            raise ValueError(f"a guess by tokens of {causal.weight.shape[-1]} cannot have bias {tuple(bias.shape)}")
        self.map: CausalMap = causal
        self.register_buffer("bias", bias)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, L, D) z_in and (B,) classes, negative for none -> (B, L, D)."""
        return self.map(inputs, labels) + self.bias[entry(labels, len(self.bias) - 1)]


def entry(labels: Tensor | None, none: int) -> Tensor | int:
    """Which entry each sample goes by: (B,) its class, or `none`; a number when all go by that one."""
    return none if labels is None or none == 0 else torch.where(labels < 0, none, labels)


def lagged(tokens: Tensor, lags: tuple[int, ...]) -> Tensor:
    """(B, W, D) -> (B, W, lags * D): for each token those `lags` before it, zeros where there are none."""
    batch, window, dim = tokens.shape
    padded = F.pad(tokens, (0, 0, lags[-1], 0))
    return padded.index_select(1, _places(window, lags, tokens.device)).view(batch, window, len(lags) * dim)


@lru_cache(maxsize=256)
def _places(window: int, lags: tuple[int, ...], device: torch.device) -> Tensor:
    """(window * lags,) where each token's lags are in a sequence that is padded by the largest lag."""
    positions = torch.arange(window, device=device)[:, None] + lags[-1]
    return (positions - torch.tensor(lags, device=device)).flatten()
