"""Grids of images as PNG files."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from harness.datasets import to_pixels
from harness.errors import HarnessError
from harness.files import make_folder, replacing


def image_grid(images: Tensor, columns: int, scale: int = 1, gap: int = 1) -> Image.Image:
    """Images side by side, row by row.

    Args:
        images: (N, C, H, W) in [-1, 1], C of 1 or 3; clipped. Non-finite pixels are magenta.
        columns: images per row.
        scale: every pixel becomes a square of this side.
        gap: mid-grey pixels between images, before scaling.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise HarnessError(f"a grid needs images of shape (N, 1 or 3, H, W), got {tuple(images.shape)}")
    pixels = to_pixels(images.nan_to_num(nan=0.0)).cpu()
    broken = (~images.isfinite()).any(dim=1, keepdim=True).cpu()
    pixels = pixels.expand(-1, 3, -1, -1).where(~broken, torch.tensor([255, 0, 255], dtype=torch.uint8)[:, None, None])
    n, channels, height, width = pixels.shape
    rows = -(-n // columns)
    canvas = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 128, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    picture = Image.fromarray(canvas.permute(1, 2, 0).numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_grid(images: Tensor, path: Path, columns: int, scale: int = 1, gap: int = 1) -> None:
    """Write `image_grid` to a PNG file.

    Raises:
        StoreError: the file cannot be written.
    """
    make_folder(path.parent)
    with replacing(path) as partial:
        image_grid(images, columns, scale, gap).save(partial, format="PNG", optimize=True)
