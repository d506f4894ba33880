"""When an iteration stops: a norm of the update, its scope, and a threshold.

Papers differ in all three, so each is an option that is stored with the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

NormName = Literal["inf", "rms", "relative-mse", "frobenius"]
Scope = Literal["batch", "sample"]


@dataclass(frozen=True)
class Norm:
    """A norm of an update.

    Args:
        sample: (update (B, W, D), tokens (B, W, D)) -> (B,), one norm per sample.
        pool: (B, ...) -> (1, ...), the norm of the whole batch from those of its samples.
    """

    sample: Callable[[Tensor, Tensor], Tensor]
    pool: Callable[[Tensor], Tensor]


def _maximum(norms: Tensor) -> Tensor:
    return norms.amax(0, keepdim=True)


NORMS: dict[str, Norm] = {
    "inf": Norm(lambda update, tokens: update.abs().amax(dim=(1, 2)), _maximum),
    "rms": Norm(lambda update, tokens: update.square().mean(dim=(1, 2)).sqrt(), _maximum),
    "relative-mse": Norm(
        lambda update, tokens: update.square().mean(dim=(1, 2)) / tokens.square().mean(dim=(1, 2)), _maximum
    ),
    "frobenius": Norm(
        lambda update, tokens: update.square().sum(dim=(1, 2)).sqrt() / update.shape[-1],
        lambda norms: norms.square().sum(0, keepdim=True).sqrt() / len(norms),
    ),
}
"""Norms of an update by name.

``inf``: max over batch, tokens and channels (SeJD, arXiv 2505.24791, Algorithm 1). ``rms``: root mean square over
tokens and channels. ``relative-mse``: mean squared update over mean squared tokens (STARFlow). ``frobenius``:
Frobenius norm over batch * channels (GS-Jacobi, arXiv 2505.12849). Where a paper does not say how samples are pooled,
the batch has the norm of its worst sample.
"""
