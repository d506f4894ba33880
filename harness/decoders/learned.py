"""A learned correction: linear in the change that an update made, and gated by what the network knew when it made it.

The error that an update leaves is J (I - J)^-1 r to first order, with r the change it made and J the strictly causal
Jacobian of the layer at this very sample. A linear map knows J's mean only; the network's hidden state tells the
sample's own. With h that state and u = z_in * exp(log_scale), n hops from e = 0 of

    e <- A lag(r + e) + u * (C lag(r + e)) + W2 ((G LayerNorm(h)) * (W1 lag(r + e)))

follow the series (I + J + J^2 + ...) J r. All lags are 1 or more, and e is 0 where r is 0 on the prefix: the fixed
point and the exact prefix stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.decoders.maps import lagged

WIDTH = 64
"""Channels of the gate."""


class GatedMap(nn.Module):
    """Predicts the error that one iteration leaves.

    Args:
        lags: k >= 1, ascending.
        hops: n.
        token_dim: D.
        hidden_dim: H, numbers of the network's hidden state.
    """

    def __init__(self, lags: tuple[int, ...], hops: int, token_dim: int, hidden_dim: int, width: int = WIDTH) -> None:
        super().__init__()
        if not lags or min(lags) < 1 or lags != tuple(sorted(set(lags))):
            raise ValueError(f"lags {lags} of a correction are not ascending from 1 or more")
        if hops < 1:
            raise ValueError(f"a correction cannot have {hops} hops")
        self.lags, self.hops, self.sizes = lags, hops, (token_dim, token_dim, width)
        self.mix = nn.Parameter(torch.zeros(len(lags) * token_dim, 2 * token_dim + width))  # A, C and W1, side by side
        self.gate = nn.Linear(hidden_dim, width)
        self.out = nn.Parameter(torch.zeros(width, token_dim))  # W2

    def forward(self, change: Tensor, scaled: Tensor, hidden: Tensor) -> Tensor:
        """(B, W, D) change and u, (B, W, H) hidden state -> (B, W, D) to be added; what is before the window is 0."""
        gate = self.gate(F.layer_norm(hidden.to(change.dtype), hidden.shape[-1:]))
        error = torch.zeros_like(change)
        for _ in range(self.hops):
            linear, by_scale, by_state = (lagged(change + error, self.lags) @ self.mix).split(self.sizes, dim=-1)
            error = torch.addcmul(linear, scaled, by_scale) + (gate * by_state) @ self.out
        return error

    def initialise(self, linear: Tensor, generator: torch.Generator) -> None:
        """A from the (lags * D, D) weight of a linear map, W1 and G small and random, C and W2 0."""
        dim, _, width = self.sizes
        with torch.no_grad():
            self.mix[:, :dim] = linear
            for part in (self.mix[:, 2 * dim :], self.gate.weight):
                fan = part.shape[0] if part.shape[1] == width else part.shape[1]
                part.copy_(torch.randn(part.shape, generator=generator) / fan**0.5)
            self.gate.bias.zero_()

    @property
    def numbers(self) -> int:
        """For each token, of all that a call holds: at most these, its window's change and answer apart."""
        dim, _, width = self.sizes
        return 2 * self.gate.in_features + len(self.lags) * dim + 8 * dim + 4 * width
