"""What a linear correction leaves: still linear in the change that an update made, but gated by what the network knew.

The error that an update leaves is J (I - J)^-1 r to first order, with r the change it made and J the strictly causal
Jacobian of the layer at this very sample. A linear map knows J's mean only; the network's hidden state tells the
sample's own. The long series (I + J + J^2 + ...) is followed in a few channels, which is cheap. With h the hidden
state, u = z_in * exp(log_scale), w = W lag(r), g = G LayerNorm(h) and n hops from y = 0 of

    y <- g * (w + R lag(y))

what the linear map leaves of the error is P y + u * (Q y). All lags are 1 or more, and it is 0 where r is 0 on the
prefix: the fixed point and the exact prefix stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.decoders.maps import lagged


class GatedMap(nn.Module):
    """Predicts what a linear correction leaves of the error of one iteration.

    Args:
        lags: k >= 1, ascending.
        hops: n.
        token_dim: D.
        hidden_dim: H, numbers of the network's hidden state.
        width: channels of w and y.
    """

    def __init__(self, lags: tuple[int, ...], hops: int, token_dim: int, hidden_dim: int, width: int) -> None:
        super().__init__()
        if not lags or min(lags) < 1 or lags != tuple(sorted(set(lags))):
            raise ValueError(f"lags {lags} of a correction are not ascending from 1 or more")
        if hops < 1:
            raise ValueError(f"a correction cannot have {hops} hops")
        self.lags, self.hops = lags, hops
        self.enter = nn.Parameter(torch.zeros(len(lags) * token_dim, width))  # W
        self.again = nn.Parameter(torch.zeros(len(lags) * width, width))  # R
        self.gate = nn.Linear(hidden_dim, width)  # G
        self.leave = nn.Parameter(torch.zeros(width, 2 * token_dim))  # P beside Q

    def forward(self, change: Tensor, scaled: Tensor, hidden: Tensor) -> Tensor:
        """(B, W, D) change and u, (B, W, H) hidden state -> (B, W, D) to be added; what is before the window is 0."""
        gate = self.gate(F.layer_norm(hidden.to(change.dtype), hidden.shape[-1:]))
        first = followed = gate * (lagged(change, self.lags) @ self.enter)
        for _ in range(self.hops - 1):
            followed = torch.addcmul(first, gate, lagged(followed, self.lags) @ self.again)
        error, by_scale = (followed @ self.leave).chunk(2, dim=-1)
        return torch.addcmul(error, scaled, by_scale)

    def initialise(self, generator: torch.Generator) -> None:
        """W and G small and random, gates around 1, all else 0."""
        with torch.no_grad():
            for part, fan in ((self.enter, len(self.enter)), (self.gate.weight, self.gate.in_features)):
                part.copy_(torch.randn(part.shape, generator=generator) / fan**0.5)
            self.gate.bias.fill_(1.0)

    @property
    def numbers(self) -> int:
        """For each token, of all that a call holds: at most these, its window's change and answer apart."""
        places, (length, width) = len(self.lags), self.enter.shape
        return 2 * self.gate.in_features + length + 4 * length // places + (2 * places + 8) * width
