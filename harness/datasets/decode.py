"""Image files to one tensor of square pixels: decoding, centre crop, resizing, and what happens to a corrupt file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from harness.datasets.images import Images
from harness.errors import DatasetError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
"""Suffixes, in lower case, of the files that a folder of images is searched for."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may take an image for, whatever it is called: nothing that runs another program."""
MOST_PIXELS = 1 << 26
"""Of one image; larger ones are refused before they are decoded, since a small file may claim any size."""


@dataclass(frozen=True)
class Record:
    """One encoded image, its class from 0, and what an error calls it, such as ``"train.parquet, row 17"``."""

    name: str
    source: Path | bytes
    label: int | None = None


def decode_records(records: Sequence[Record], size: int | None, skip_corrupt: bool) -> Images:
    """Decode every record, in order, into RGB images of one size; all have a label, or none has.

    The largest centred square of an image is resampled to a side of `size` with Pillow's Lanczos filter, whose support
    grows with the reduction (it is antialiased). None keeps the images' own size, which must then be the same for all.
    Raises DatasetError: an image that cannot be decoded, unless `skip_corrupt`, or of another size than the first.
    """
    pixels: Tensor | None = None
    labels: list[int] = []
    kept = 0
    with ThreadPoolExecutor() as pool:  # Pillow decodes and resamples without holding the interpreter's lock
        for record, decoded in zip(records, pool.map(lambda record: _decode(record, size), records), strict=True):
            if isinstance(decoded, DatasetError):
                if not skip_corrupt:
                    raise decoded
                continue
            if pixels is None:  # allocated once: large datasets are never held twice
                pixels = torch.empty((len(records), *decoded.shape), dtype=torch.uint8)
            if decoded.shape != pixels.shape[1:]:
                raise DatasetError(
                    f"{record.name} is {decoded.shape[2]}x{decoded.shape[1]}, the first image is "
                    f"{pixels.shape[3]}x{pixels.shape[2]}; give a size to crop and resample all of them to"
                )
            pixels[kept] = torch.from_numpy(decoded)
            if record.label is not None:
                labels.append(record.label)
            kept += 1
    if pixels is None:
        return Images(torch.empty((0, 3, size or 0, size or 0), dtype=torch.uint8), None, skipped=len(records))
    return Images(pixels[:kept], torch.tensor(labels) if labels else None, skipped=len(records) - kept)


def _decode(record: Record, size: int | None) -> np.ndarray | DatasetError:
    """(3, H, W) uint8, or the error that a caller may raise or count."""
    source = io.BytesIO(record.source) if isinstance(record.source, bytes) else record.source
    try:
        with Image.open(source, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"it claims {file.width:,} x {file.height:,} pixels, at most {MOST_PIXELS:,} are read")
            image = ImageOps.exif_transpose(file).convert("RGB")
            if size is not None:
                image = _square(image, size)
            return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    except Exception as error:  # Pillow's readers let out whatever their parsing stumbled over
        return DatasetError(f"{record.name} cannot be decoded as an image: {error}; --skip-corrupt leaves such out")


def resize(pixels: Tensor, size: int | None) -> Tensor:
    """(N, 3, H, W) uint8 images resampled as `decode_records` does; as they are when `size` is None or theirs."""
    if size is None or pixels.shape[-2:] == (size, size):
        return pixels
    resized = np.empty((len(pixels), 3, size, size), dtype=np.uint8)
    for row, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        resized[row] = np.asarray(_square(Image.fromarray(image), size)).transpose(2, 0, 1)
    return torch.from_numpy(resized)


def _square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square, resampled. It is cut out first: no pixel outside it is mixed in."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)
