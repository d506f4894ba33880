"""The handwritten digits of scikit-learn: 1,797 real 8x8 greyscale images, offline; in black and white too."""

from __future__ import annotations

import torch

from harness.datasets.base import Dataset, datasets
from harness.datasets.images import Images
from harness.errors import DatasetError

TEST_EVERY = 5
"""Every fifth image is held out, so both splits hold every writer's style and every digit."""
THRESHOLD = 128
"""Grey levels from here on are ink: the upper half of 0..255."""


@datasets.register("digits")
class Digits(Dataset):
    """Handwritten digits, 8x8 grey, 10 classes, 1,438 + 359 images, embedded (scikit-learn's `load_digits`)."""

    embedded = True

    def load(self, split: str) -> Images:
        if self.size not in (None, 8):
            raise DatasetError(f"digits are 8x8 and are not resized; got size {self.size}")
        from sklearn.datasets import load_digits

        data = load_digits()
        # grey levels 0..16 become 0..255
        pixels = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(data.target).long()
        held_out = torch.arange(len(pixels)) % TEST_EVERY == TEST_EVERY - 1
        rows = held_out if split == "test" else ~held_out
        return Images(pixels[rows], labels[rows])


@datasets.register("binary-digits")
class BinaryDigits(Digits):
    """The digits, two levels of grey, 8x8, 10 classes, 1,438 + 359 images, embedded (scikit-learn's `load_digits`)."""

    def load(self, split: str) -> Images:
        grey = super().load(split)
        return Images((grey.pixels >= THRESHOLD).to(torch.uint8) * 255, grey.labels)
