"""Bytes of live tensors, against allocations of known size."""

import torch

from harness.metrics.live import live_peak

KIB = 1024


def test_what_is_freed_is_not_counted_with_what_comes_after():
    def call():
        for _ in range(3):
            torch.ones(KIB, dtype=torch.uint8)

    assert live_peak(call).bytes == KIB


def test_views_and_what_was_there_before_count_nothing():
    before = torch.ones(KIB, dtype=torch.uint8)

    def call():
        before.view(32, 32)[:4].add_(1)

    assert live_peak(call).bytes == 0


def test_what_is_inside_a_function_is_seen_in_inference_mode_too():
    x = torch.ones(1, 1, 64, 16)

    def call():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            torch.nn.functional.scaled_dot_product_attention(x, x, x)

    scores = 64 * 64 * 4
    with torch.inference_mode():
        assert live_peak(call).bytes > scores
    assert live_peak(call).bytes > scores
