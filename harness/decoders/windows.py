"""Which windows of a layer's tokens are evaluated, one after the other: all that tells the parallel decoders apart.

A block stays where it is until it has converged (Jacobi is one block, Gauss-Seidel-Jacobi several), a frontier moves
over the prefix that has converged, a slide moves by a fixed stride. `harness.decoders.solver` evaluates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Window = tuple[int, int]
"""The positions [start, end) of a network call; an end beyond the sequence means its end."""

Visit = tuple[int, int, int]
"""(first, last + 1, updates before this one) of tokens of a window, counted from its first token."""


class Windows(Protocol):
    """Which windows are evaluated, one after the other, until the start reaches the end of the sequence."""

    @property
    def mode(self) -> str:
        """What the trace calls the method."""

    @property
    def tau(self) -> float:
        """Threshold of the norm of an update."""

    @property
    def width(self) -> int:
        """The most tokens of a window."""

    @property
    def adaptive(self) -> bool:
        """Whether the next window depends on the last update; otherwise the device is never waited for."""

    @property
    def per_token(self) -> bool:
        """Whether every token has a norm of its own, rather than the window as a whole."""

    def whole(self, last: int) -> bool:
        """Whether every call evaluates all `last` tokens of a layer, so that no prefix has to be kept."""

    def first(self) -> Window:
        """The first window."""

    def next(self, window: Window, size: int, norms: list[float], calls: int) -> tuple[Window, bool]:
        """The window after this one, and whether the tokens that the move freezes are known to be good.

        They are when they are exact or satisfy the stopping rule. What is not adaptive does not see the
        norms; what it does not know to be good is looked at when the layer is done.

        Args:
            size: its tokens, those beyond the sequence not counted.
            norms: of its update, `size` of them when `per_token`, else one; empty unless `adaptive`.
            calls: on this very window so far.
        """

    def visits(self, window: Window, size: int, calls: int) -> list[Visit]:
        """How often the tokens of a window had been updated before its call number `calls`, from 0."""


@dataclass(frozen=True)
class Blocks:
    """Gauss-Seidel over blocks, Jacobi inside: a block is left when it has converged, all of it at once.

    Args:
        width: tokens per block; the first block needs one position less, because token 0 is given.
        cap: calls per block; None for as many as make it exact.
        adaptive: whether a block is left before its cap when it has converged.
    """

    width: int
    tau: float
    cap: int | None = None
    adaptive: bool = True
    mode: str = "jacobi"
    per_token = False

    def whole(self, last: int) -> bool:
        return self.first()[1] >= last

    def first(self) -> Window:
        return (0, max(self.width - 1, 1))

    def next(self, window: Window, size: int, norms: list[float], calls: int) -> tuple[Window, bool]:
        settled = calls >= size or any(calm(norm, self.tau) for norm in norms)
        if settled or calls == self.cap:
            return (window[1], window[1] + self.width), settled
        return window, True

    def visits(self, window: Window, size: int, calls: int) -> list[Visit]:
        return [(0, size, calls)]


@dataclass(frozen=True)
class Frontier:
    """After every call the window starts where the converged prefix ends."""

    width: int
    tau: float
    mode: str = "frontier"
    adaptive = per_token = True

    def whole(self, last: int) -> bool:
        return False

    def first(self) -> Window:
        return (0, self.width)

    def next(self, window: Window, size: int, norms: list[float], calls: int) -> tuple[Window, bool]:
        """Past the calm prefix and the token after it, whose own inputs were calm."""
        prefix = next((i for i, norm in enumerate(norms) if not calm(norm, self.tau)), size)
        start = window[0] + min(prefix + 1, size)
        return (start, start + self.width), True

    def visits(self, window: Window, size: int, calls: int) -> list[Visit]:
        """As if all were new: how often each was updated is not kept."""
        return [(0, size, 0)]


@dataclass(frozen=True)
class Slide:
    """A window that moves by a fixed stride: every token is evaluated width / stride times, its last being its best.

    It opens to its full width by one stride per call, so that the first tokens are evaluated as often as the others.

    Args:
        width: tokens per call, a multiple of the stride.
        stride: tokens frozen per call.
        tau: what the last update of a frozen token is compared with; the window moves in any case.
    """

    width: int
    stride: int
    tau: float
    mode: str = "slide"
    per_token = True
    adaptive = False

    def whole(self, last: int) -> bool:
        return False

    def first(self) -> Window:
        return (0, self.stride)

    def next(self, window: Window, size: int, norms: list[float], calls: int) -> tuple[Window, bool]:
        """One stride further; a token that enters and leaves alone is exact."""
        end = window[1] + self.stride
        return (max(0, end - self.width), end), self.stride == 1

    def visits(self, window: Window, size: int, calls: int) -> list[Visit]:
        """One group per stride: the last is new, the one before it was updated once, and so on."""
        width = window[1] - window[0]
        firsts = range(0, min(width, size), self.stride)
        return [(i, min(i + self.stride, size), width // self.stride - 1 - i // self.stride) for i in firsts]


def calm(norm: float, tau: float) -> bool:
    """Whether an update is below the threshold; with tau 0, whether there was none."""
    return norm < tau or norm == 0
