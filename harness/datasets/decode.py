"""Image files to one tensor of square pixels: decoding, centre crop, resizing, and what happens to a corrupt file.

Grey images have one channel and colour images three; where both are, grey is repeated. 16-bit grey is scaled by its
range. What would have to be guessed is refused: 32-bit numbers, whose range nothing states, and transparent pixels,
whose hidden colours are no picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from harness.datasets.images import Images
from harness.errors import DatasetError

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
"""Suffixes, in lower case, of the files that a folder of images is searched for."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may take an image for, whatever it is called: nothing that runs another program."""
MOST_PIXELS = 1 << 26
"""Of one image; larger ones are refused before they are decoded, since a small file may claim any size."""
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB: 1 MiB is less than many sound profiles take


@dataclass(frozen=True)
class Record:
    """One encoded image, its class from 0, and what an error calls it, such as ``"train.parquet, row 17"``."""

    name: str
    source: Path | bytes
    label: int | None = None


def decode_records(records: Sequence[Record], size: int | None, skip_corrupt: bool) -> Images:
    """Decode every record, in order, into images of one size, grey or RGB; all have a label, or none has.

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
            if decoded.shape[0] > pixels.shape[1]:
                pixels = pixels.expand(-1, 3, -1, -1).contiguous()
            if decoded.shape[1:] != pixels.shape[2:]:
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
    """(1 or 3, H, W) uint8, or the error that a caller may raise or count."""
    source = io.BytesIO(record.source) if isinstance(record.source, bytes) else record.source
    try:
        with Image.open(source, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"it claims {file.width:,} x {file.height:,} pixels, at most {MOST_PIXELS:,} are read")
            image = _eight_bit(file)
            if size is not None:
                image = _square(image, size)
            return np.array(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1), order="C")
    except UnidentifiedImageError:  # whose text names an object in memory
        return DatasetError(
            f"{record.name} cannot be decoded as an image: it is none of {', '.join(FORMATS)}; --skip-corrupt leaves "
            "such out"
        )
    except Exception as error:  # Pillow's readers let out whatever their parsing stumbled over
        return DatasetError(f"{record.name} cannot be decoded as an image: {error}; --skip-corrupt leaves such out")


def _eight_bit(file: Image.Image) -> Image.Image:
    """Grey (L) or RGB, upright; of several frames the first.

    Raises ValueError: a range would have to be guessed, or a background.
    """
    image = ImageOps.exif_transpose(file)
    hidden = "it has transparent pixels, whose colours are hidden: flatten it on a background first"
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM")):
        levels, tags = np.asarray(image), getattr(file, "tag_v2", {})  # a TIFF may hold 12 bits, and white may be 0
        if (levels == image.info.get("transparency")).any():
            raise ValueError(hidden)
        scaled = (levels * (255 / (2 ** tags.get(258, (16,))[0] - 1))).round().astype(np.uint8)
        return Image.fromarray(255 - scaled if tags.get(262) == 0 else scaled)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, whose range nothing states: store them with 8 or 16 bits")
    if image.mode in ("1", "L", "RGB") and "transparency" not in image.info:
        return image.convert("RGB" if image.mode == "RGB" else "L")
    if image.has_transparency_data:
        key = image.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, of which Pillow has dropped half
            raise ValueError(hidden)
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise ValueError(hidden)
    image = image.convert("RGB")
    red, green, blue = image.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else image


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
