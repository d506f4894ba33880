"""What a decode returns: the samples, and how each layer was inverted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

State = Literal["converged", "done", "not converged"]


def worst(states: Iterable[State]) -> State:
    """The least certain of some states; of none, that nothing is left to do."""
    found = set(states)
    return "not converged" if "not converged" in found else "done" if "done" in found else "converged"


@dataclass(frozen=True)
class LayerTrace:
    """How one layer was inverted.

    Args:
        layer: place in decoding order, 1 is next to the prior.
        block: the checkpoint's own index.
        mode: the method that produced the tokens, such as ``"sequential"`` or ``"jacobi"``.
        iterations: of that method; the steps L - 1 when it is sequential.
        converged: the tokens satisfy the stopping rule, or are exact; of a fixed amount of work: it was done, and is
            finite.
        residuals: the stopping rule's norm of the update, one per iteration; empty when nothing iterates.
        token_evaluations: tokens pushed through the layer's network, per sample, every pass and attempt counted.
        depth: network calls that had to follow each other, every attempt counted.
        flags: what was noticed: ``"non-finite"``, ``"cap"``, ``"growing"``, ``"redecoded"``.
        exact: token by token, so that nothing is gained by decoding the layer again.
        fixed: a fixed amount of work, which no stopping rule judges.
    """

    layer: int
    block: int
    mode: str
    iterations: int
    converged: bool
    residuals: list[float]
    token_evaluations: float
    depth: int
    flags: tuple[str, ...] = ()
    wall_s: float = math.nan
    exact: bool = False
    fixed: bool = False

    @property
    def state(self) -> State:
        """How it ended: by its stopping rule or exact, with its fixed work done, or given up."""
        return "not converged" if not self.converged else "done" if self.fixed else "converged"


@dataclass(frozen=True)
class DecodeResult:
    """What a decode returns.

    Args:
        tokens: (B, L, D) samples in raster order.
        images: (B, C, H, W) the same as images, or None when the flow's data are no images.
    """

    tokens: Tensor
    images: Tensor | None
    layers: list[LayerTrace] = field(default_factory=list)

    @property
    def converged(self) -> bool:
        """Whether no layer was given up; one whose fixed work is done was not, see `state`."""
        return all(trace.converged for trace in self.layers)

    @property
    def state(self) -> State:
        """The least certain of its layers' states."""
        return worst(trace.state for trace in self.layers)

    @property
    def depth(self) -> int:
        return sum(trace.depth for trace in self.layers)

    @property
    def token_evaluations(self) -> float:
        return sum(trace.token_evaluations for trace in self.layers)

    @property
    def fpe(self) -> float:
        """Forward-pass equivalents: token evaluations over those of one forward pass.

        The last token parametrises nothing, so a forward pass, and a sequential decode, evaluates L - 1 tokens a
        layer: sequential is 1 by definition and Jacobi with 3 iterations in every layer is 3.
        """
        return self.token_evaluations / (len(self.layers) * (self.tokens.shape[1] - 1))
