"""What decodes should take on a GPU, by counting the bytes and operations of every kernel: said before it is measured.

A kernel takes as long as its bytes or its operations do, whichever is longer, and never less than `Card.kernel_s`. Of
one transformer layer on N tokens of C channels there are, as the captured and compiled network runs them: norm; query,
key and value; attention; projection; addition and norm; the MLP's first map; GELU; its second map; addition; and where
tokens are decoded behind a prefix, what is written to the cache. ``python -m analysis.predictions`` prints the table
of docs/explanation/gpu.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.text import quantity


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU: the maker's figures, the share of them that kernels are taken to reach, and the least that one takes."""

    name: str = "H100 80 GB (SXM)"
    bytes_s: float = 3.35e12
    flops_s: float = 989e12  # bfloat16, dense
    memory_share: float = 0.8
    product_share: float = 0.6
    kernel_s: float = 2e-6

    def seconds(self, nbytes: float, flops: float = 0.0) -> float:
        """What a kernel takes."""
        work = max(nbytes / (self.memory_share * self.bytes_s), flops / (self.product_share * self.flops_s))
        return max(work, self.kernel_s)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A TarFlow of K layers of `depth` transformer layers, and the bytes of its numbers."""

    name: str
    layers: int
    depth: int
    channels: int
    tokens: int
    batch: int = 256
    size: int = 2


PAPER = Shape(name="2-256-6-6", layers=6, depth=6, channels=256, tokens=256)
AFHQ = Shape(name="8-768-8-8", layers=8, depth=8, channels=768, tokens=1024)
OUTSIDE = 8
"""Kernels of a call that are no transformer layer's: tokens in and out, embeddings, the update, the stopping rule."""


def call_s(shape: Shape, window: int, keys: float | None, card: Card) -> float:
    """Seconds of one network call of a layer on a window of every sample; `keys` in the cache, None where whole."""
    count, c = shape.batch * window, shape.channels
    row, square = count * c * shape.size, c * c * shape.size
    read = 3 * row if keys is None else row + 2 * shape.batch * keys * c * shape.size
    pairs = count * (window / 2 if keys is None else keys)
    product = 2.0 * count * c * c
    kernels = [
        card.seconds(2 * row),
        card.seconds(4 * row + 3 * square, 3 * product),
        0.0 if keys is None else card.seconds(4 * row),
        card.seconds(read + row, 4 * pairs * c),
        card.seconds(2 * row + square, product),
        card.seconds(4 * row),
        card.seconds(5 * row + 4 * square, 4 * product),
        card.seconds(8 * row),
        card.seconds(5 * row + 4 * square, 4 * product),
        card.seconds(3 * row),
    ]
    return shape.depth * sum(kernels) + OUTSIDE * card.kernel_s


def predictions(card: Card | None = None) -> list[tuple[str, str, float, float]]:
    """(shape, what, seconds predicted, seconds to be reached) at batch 256 in bfloat16."""
    card = card or Card()
    whole, step = _whole(PAPER, card), _stepwise(PAPER, card)
    return [
        (PAPER.name, "forward pass", PAPER.layers * whole, 0.020),
        (PAPER.name, "sequential", PAPER.layers * step, 0.25),
        (PAPER.name, "SeJD: layer 1 sequential, 20 passes of a layer in all others", step + 20 * whole, 0.12),
        (PAPER.name, "auto: 12 passes of a layer", 12 * whole, 0.05),
        (AFHQ.name, "forward pass", AFHQ.layers * _whole(AFHQ, card), 0.7),
    ]


def table() -> str:
    """The predictions as Markdown, and what they assume of the card."""
    card = Card()
    assumed = (
        f"{card.name}: {quantity(card.memory_share * 100)} % of {quantity(card.bytes_s / 1e12)} TB/s, "
        f"{quantity(card.product_share * 100)} % of {quantity(card.flops_s / 1e12)} TFLOP/s, at least "
        f"{quantity(card.kernel_s * 1e6)} us a kernel. Batch {PAPER.batch}, bfloat16, captured and compiled.\n"
    )
    lines = [assumed, "| shape | what | predicted, s | to be reached, s |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {s} | {w} | {quantity(p)} | {quantity(r)} |" for s, w, p, r in predictions())])


def _whole(shape: Shape, card: Card) -> float:
    return call_s(shape, shape.tokens - 1, None, card)


def _stepwise(shape: Shape, card: Card) -> float:
    """A layer token by token; a step looks at the cache up to the end of the eighth that it is in."""
    part = shape.tokens // 8
    return sum(call_s(shape, 1, (start // part + 1) * part, card) for start in range(shape.tokens - 1))


if __name__ == "__main__":
    print(table())
