"""The handwritten digits of scikit-learn as black and white: what stands in for binary MNIST offline."""

from __future__ import annotations

import torch

from harness.datasets.base import datasets
from harness.datasets.digits import Digits
from harness.datasets.images import Images

THRESHOLD = 128
"""Grey levels from here on are ink: the upper half of 0..255."""


@datasets.register("binary-digits")
class BinaryDigits(Digits):
    """The digits with two levels, 8x8, 10 classes, 1,438 + 359 images, embedded (scikit-learn's `load_digits`)."""

    def load(self, split: str) -> Images:
        """The split; pixels are 0 or 255."""
        grey = super().load(split)
        return Images((grey.pixels >= THRESHOLD).to(torch.uint8) * 255, grey.labels)
