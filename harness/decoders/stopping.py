"""When an iteration stops: a norm of the update, its scope, and a threshold.

Papers differ in all three, so each is an option that is stored with the result.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

SCOPES = ("batch", "sample")


def infinity(update: Tensor, tokens: Tensor) -> Tensor:
    """(B,) max over tokens and channels of the update's magnitude (SeJD, arXiv 2505.24791, Algorithm 1)."""
    return update.abs().amax(dim=(1, 2))


def root_mean_square(update: Tensor, tokens: Tensor) -> Tensor:
    """(B,) root mean square of the update over tokens and channels."""
    return update.square().mean(dim=(1, 2)).sqrt()


def relative_mean_square(update: Tensor, tokens: Tensor) -> Tensor:
    """(B,) mean squared update over mean squared tokens (STARFlow)."""
    return update.square().mean(dim=(1, 2)) / tokens.square().mean(dim=(1, 2))


def frobenius(update: Tensor, tokens: Tensor) -> Tensor:
    """(B,) Frobenius norm of the update over its channels (GS-Jacobi, arXiv 2505.12849, one sample's share)."""
    return update.square().sum(dim=(1, 2)).sqrt() / update.shape[-1]


NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "inf": infinity,
    "rms": root_mean_square,
    "relative-mse": relative_mean_square,
    "frobenius": frobenius,
}
"""Norms of an update by name: (update (B, W, D), tokens (B, W, D)) -> (B,)."""
