"""Images as tensors, on the scale that flows take and as pixels, and side by side in an image file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from harness.errors import DatasetError, HarnessError
from harness.files import make_folder, replacing


@dataclass(frozen=True)
class Images:
    """One split of a dataset, decoded and at its final size."""

    pixels: Tensor
    """(N, C, H, W) uint8."""
    labels: Tensor | None = None
    """(N,) int64 classes from 0, where there are any."""
    skipped: int = 0
    """Corrupt images left out."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def digest(self) -> str:
        """SHA-256 of pixels and labels: what identifies the data in a run's manifest."""
        sha = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        sha.update(self.pixels.contiguous().numpy().tobytes())
        if self.labels is not None:
            sha.update(self.labels.numpy().tobytes())
        return sha.hexdigest()

    def scaled(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(n, C, H, W) float32 images in [-1, 1], as flows take them."""
        return to_unit(self.pixels[rows])

    def first(self, count: int | None) -> Images:
        """So many of them, all for None."""
        return Images(self.pixels[:count], None if self.labels is None else self.labels[:count])

    def of_shape(self, shape: tuple[int, ...] | None, name: str) -> Images:
        """These images with the channels of a (C, H, W) shape: grey ones repeated, or one of three equal channels.

        Raises DatasetError: they are of another shape; `name` is what the sentence calls them.
        """
        pixels, here = self.pixels, tuple(self.pixels.shape[1:])
        if shape is None or shape == here:
            return self
        if here == (1, *shape[1:]) and shape[0] == 3:
            return replace(self, pixels=pixels.expand(-1, 3, -1, -1))
        if here == (3, *shape[1:]) and shape[0] == 1 and bool((pixels == pixels[:, :1]).all()):
            return replace(self, pixels=pixels[:, :1])
        raise DatasetError(f"{name} holds images of shape {here}, not {shape} (channels, height, width)")


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1.

    >>> to_unit(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return pixels.float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8 0..255, clipped and rounded; the inverse of `to_unit`.

    >>> to_pixels(torch.tensor([-1.0, 0.0, 1.5]))
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def finite_images(images: Tensor) -> Tensor:
    """Those of (N, C, H, W) images whose pixels are all finite."""
    return images[images.isfinite().flatten(1).all(dim=1)]


def image_grid(images: Tensor, columns: int, scale: int = 1, gap: int = 1) -> Image.Image:
    """(N, 1 or 3, H, W) images in [-1, 1], clipped, side by side and row by row; non-finite pixels are magenta.

    Every pixel becomes a square of side `scale`; `gap` mid-grey pixels are between images before that.
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
    """Write `image_grid` to a file, in the format of its suffix; a `HarnessError` where that takes no such size."""
    make_folder(path.parent)
    picture, kind = image_grid(images, columns, scale, gap), Image.registered_extensions()[path.suffix.lower()]
    with replacing(path) as partial:
        try:
            picture.save(partial, format=kind, optimize=True, quality=95, subsampling=0, lossless=True)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None):  # of the disk
                raise
            size = f"{picture.width:,} x {picture.height:,}"
            raise HarnessError(f"'{path}': {kind} takes no image of {size} pixels; a .png does") from error
