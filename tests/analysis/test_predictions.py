"""What a GPU should take: arithmetic of what is known of a card, and the page that tells it."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.predictions import AFHQ, PAPER, Card, call_s, predictions, table

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "gpu.md"


def test_the_page_holds_what_the_function_gives():
    assert table() in PAGE.read_text(encoding="utf-8")


def test_a_call_is_bound_by_bytes_operations_or_launches():
    free = {"kernel_s": 0.0}
    bytes_alone, products_alone = Card(**free, flops_s=1e30), Card(**free, bytes_s=1e30)
    for shape in (PAPER, AFHQ):
        count, c = shape.batch * (shape.tokens - 1), shape.channels
        moved = (37 * count * c + 12 * c * c) * shape.size
        assert call_s(shape, shape.tokens - 1, None, bytes_alone) == pytest.approx(
            shape.depth * moved / bytes_alone.memory_share / bytes_alone.bytes_s
        )
        operations = 24 * count * c * c + 2 * count * (shape.tokens - 1) * c
        assert call_s(shape, shape.tokens - 1, None, products_alone) == pytest.approx(
            shape.depth * operations / products_alone.product_share / products_alone.flops_s
        )
    tiny = replace(PAPER, batch=1)
    assert call_s(tiny, 1, 32, Card()) == pytest.approx((PAPER.depth * 10 + 8) * Card().kernel_s)


def test_a_faster_card_is_predicted_faster():
    slow, fast = predictions(), predictions(Card(bytes_s=1e13, flops_s=1e16, kernel_s=1e-7))
    assert all(b[2] < a[2] for a, b in zip(slow, fast, strict=True))
