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


def _infinity(update: Tensor, tokens: Tensor) -> Tensor:
    return update.abs().amax(dim=(1, 2))


def _root_mean_square(update: Tensor, tokens: Tensor) -> Tensor:
    return update.square().mean(dim=(1, 2)).sqrt()


def _relative_mean_square(update: Tensor, tokens: Tensor) -> Tensor:
    return update.square().mean(dim=(1, 2)) / tokens.square().mean(dim=(1, 2))


def _frobenius(update: Tensor, tokens: Tensor) -> Tensor:
    return update.square().sum(dim=(1, 2)).sqrt() / update.shape[-1]


def _frobenius_pool(norms: Tensor) -> Tensor:
    return norms.square().sum(0, keepdim=True).sqrt() / len(norms)


NORMS: dict[str, Norm] = {
    "inf": Norm(_infinity, _maximum),
    "rms": Norm(_root_mean_square, _maximum),
    "relative-mse": Norm(_relative_mean_square, _maximum),
    "frobenius": Norm(_frobenius, _frobenius_pool),
}
"""Norms of an update by name.

``inf``: max over batch, tokens and channels (SeJD, arXiv 2505.24791, Algorithm 1). ``rms``: root mean square over
tokens and channels. ``relative-mse``: mean squared update over mean squared tokens (STARFlow). ``frobenius``:
Frobenius norm over batch * channels (GS-Jacobi, arXiv 2505.12849). Where a paper does not say how samples are pooled,
the batch has the norm of its worst sample.
"""
