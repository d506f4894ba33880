"""Depth, transparency, channels and metadata of image files: the right pixels, or a sentence."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, TiffImagePlugin

from harness.datasets import Images, load_dataset
from harness.errors import DatasetError

RAMP = np.linspace(0, 65535, 144).astype(np.uint16).reshape(12, 12)
GREY = (RAMP / 257).round().astype(np.uint8)
SPECKS = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def read(tmp_path, *pictures, suffix=".png", **options):
    """The pixels of a folder of these images."""
    (tmp_path / "train").mkdir(exist_ok=True)
    for row, picture in enumerate(pictures):
        path = tmp_path / "train" / f"{row}{suffix}"
        path.write_bytes(picture) if isinstance(picture, bytes) else picture.save(path, **options)
    return load_dataset("imagefolder", "train", root=tmp_path).pixels


def tiff(picture, **tags):
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[getattr(TiffImagePlugin, name)] = value
    picture.save(buffer := io.BytesIO(), "TIFF", tiffinfo=directory)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grey_is_scaled_by_its_range(tmp_path, suffix):
    pixels = read(tmp_path, Image.fromarray(RAMP), suffix=suffix)
    assert torch.equal(pixels, torch.from_numpy(GREY)[None, None])


def test_16_bit_grey_whose_white_is_zero(tmp_path):
    pixels = read(tmp_path, tiff(Image.fromarray(RAMP), PHOTOMETRIC_INTERPRETATION=0), suffix=".tif")
    assert torch.equal(pixels, 255 - torch.from_numpy(GREY)[None, None])


def test_12_bit_grey_is_scaled_by_its_range(tmp_path):
    """Two pixels in three bytes, white and a quarter of it."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 12 * 8 + 4, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + bytes([0xFF, 0xF4, 0x00])
    assert read(tmp_path, data, suffix=".tif").flatten().tolist() == [255, 64]


def test_deep_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = read(tmp_path, Image.fromarray(RAMP), exif=exif)
    assert torch.equal(pixels[0, 0], torch.from_numpy(GREY).flip(0, 1))


def test_a_hidden_colour_of_16_bits_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="it has transparent pixels"):
        read(tmp_path, Image.fromarray(SPECKS), transparency=(1000, 0, 65535))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_numbers_of_no_stated_range_are_refused(tmp_path, dtype):
    with pytest.raises(DatasetError, match=r"0.tif' cannot be decoded .* 32-bit numbers, whose range nothing states"):
        read(tmp_path, Image.fromarray(RAMP.astype(dtype)), suffix=".tif")


def transparent(mode):
    """A picture of some mode with one hidden pixel, what it is saved with, and the same picture without."""
    if mode in ("RGBA", "LA"):
        opaque = Image.fromarray(SPECKS).convert(mode)
        hidden = opaque.copy()
        hidden.putpixel((3, 3), (*opaque.getpixel((3, 3))[:-1], 254))
        return hidden, {}, opaque
    if mode == "I;16":
        return Image.fromarray(RAMP), {"transparency": int(RAMP[3, 3])}, Image.fromarray(RAMP)
    opaque = Image.fromarray(SPECKS).convert(mode)
    value = opaque.getpixel((3, 3))
    return opaque, {"transparency": bytes([255] * value + [0]) if mode == "P" else value}, opaque.copy()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "I;16"])
def test_transparent_pixels_are_refused_and_an_opaque_alpha_is_no_matter(tmp_path, mode):
    hidden, options, opaque = transparent(mode)
    with pytest.raises(DatasetError, match="0.png' .* it has transparent pixels, whose colours are hidden: flatten it"):
        read(tmp_path, hidden, **options)
    pixels = read(tmp_path, opaque)
    wanted = GREY if mode == "I;16" else np.asarray(opaque.convert("L" if mode == "LA" else "RGB"))
    if mode == "L":
        wanted = wanted[..., 0]
    assert torch.equal(pixels[0], torch.from_numpy(np.atleast_3d(wanted).transpose(2, 0, 1).copy()))


def test_the_channels_follow_the_images(tmp_path):
    grey, colour = Image.fromarray(GREY), Image.fromarray(SPECKS)
    assert read(tmp_path, grey, grey.convert("1"), grey.convert("P")).shape == (3, 1, 12, 12)
    mixed = read(tmp_path, grey, colour, grey.rotate(90))
    assert mixed.shape == (3, 3, 12, 12)
    assert torch.equal(mixed[0], torch.from_numpy(GREY).expand(3, -1, -1))
    assert torch.equal(mixed[1], torch.from_numpy(SPECKS).permute(2, 0, 1))


def test_channels_of_a_flow():
    grey = Images(torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2), torch.tensor([3]), skipped=1)
    colour = grey.of_shape((3, 2, 2), "it")
    assert torch.equal(colour.pixels, grey.pixels.expand(1, 3, 2, 2)) and (len(colour.labels), colour.skipped) == (1, 1)
    assert torch.equal(colour.of_shape((1, 2, 2), "it").pixels, grey.pixels)
    mixed = Images(torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2))
    for images, shape in ((mixed, (1, 2, 2)), (grey, (2, 2, 2)), (grey, (3, 2, 1))):
        with pytest.raises(DatasetError, match=r"'x' holds images of shape .*, not .* \(channels, height, width\)"):
            images.of_shape(shape, "'x'")


@pytest.mark.parametrize("kind", ["text", "compressed", "profile"])
def test_large_metadata_is_no_fault(tmp_path, kind):
    text, options = PngImagePlugin.PngInfo(), {}
    if kind == "profile":
        options["icc_profile"] = bytes(2 << 20)
    else:
        text.add_text("notes", "x" * (2 << 20), zip=kind == "compressed")
    assert torch.equal(read(tmp_path, Image.fromarray(GREY), pnginfo=text, **options)[0, 0], torch.from_numpy(GREY))


def test_metadata_that_unpacks_to_any_size_is_refused(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "x" * (80 << 20), zip=True)
    with pytest.raises(DatasetError, match="0.png' cannot be decoded"):
        read(tmp_path, Image.fromarray(GREY), pnginfo=text)


def test_what_is_no_image_is_told_without_an_address(tmp_path):
    with pytest.raises(DatasetError, match="it is none of PNG, JPEG") as caught:
        read(tmp_path, b"<html>")
    assert "object at" not in str(caught.value)
