"""Samples that were drawn, with what was done for them: how they show themselves, in a line and in a notebook."""

from __future__ import annotations

import base64
import html
import io
import math
from dataclasses import dataclass

import pandas as pd
from PIL import Image
from torch import Tensor

from harness.datasets.images import image_grid
from harness.decoders import Decoder, DecodeResult, decoders
from harness.decoders.trace import Certificate, State, worst

SHOWN = 64
"""Samples that a notebook shows, at most."""


@dataclass(frozen=True, repr=False)
class Sampled:
    """What was drawn, and how; a notebook shows both."""

    images: Tensor  # (N, C, H, W) in [-1, 1], on the CPU
    batches: list[DecodeResult]  # what each batch's decode returned, in order
    wall_s: float  # seconds of decoding, denoising included
    decoder: Decoder | None = None

    @property
    def state(self) -> State:
        """The least certain state of any layer of any batch."""
        return worst(batch.state for batch in self.batches)

    @property
    def certificate(self) -> Certificate | None:
        """Of every sample, where the decoder certifies."""
        told = [batch.certificate for batch in self.batches if batch.certificate is not None]
        return Certificate.joined(told) if told else None

    @property
    def layers(self) -> pd.DataFrame:
        """One row per layer, in decoding order: mode, most iterations of any batch, least certain state, seconds."""
        rows = [
            {
                "layer": traces[0].layer,
                "block": traces[0].block,
                "mode": ", ".join(dict.fromkeys(trace.mode for trace in traces)),
                "iterations": max(trace.iterations for trace in traces),
                "state": worst(trace.state for trace in traces),
                "wall_s": sum(trace.wall_s for trace in traces),
            }
            for traces in zip(*(batch.layers for batch in self.batches), strict=True)
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        by = "" if self.decoder is None else f" by {name_of(self.decoder)}"
        iterations = " ".join(map(str, self.layers["iterations"]))
        certified = "" if self.certificate is None else f"; {self.certificate}"
        return (
            f"<{len(self.images)} samples of {'x'.join(map(str, self.images.shape[1:]))}{by} in {self.wall_s:.2f} s, "
            f"{self.fpe:.2f} forward-pass equivalents each; iterations {iterations}; {self.state}{certified}>"
        )

    def _repr_html_(self) -> str:
        self.grid(SHOWN).save(png := io.BytesIO(), "PNG")
        picture = base64.b64encode(png.getvalue()).decode()
        table = self.layers.to_html(index=False, border=0, float_format=lambda value: f"{value:.3g}")
        return f"<p>{html.escape(repr(self)[1:-1])}</p><img src='data:image/png;base64,{picture}'/>{table}"

    def grid(self, most: int | None = None) -> Image.Image:
        """The images, or so many of them, as one picture, nearly square, small ones magnified."""
        images = self.images[:most]
        columns = math.ceil(math.sqrt(len(images)))
        return image_grid(images, columns, scale=max(1, 32 // self.images.shape[-1]))

    @property
    def fpe(self) -> float:
        """Forward-pass equivalents, the mean over samples."""
        sizes = [len(batch.tokens) for batch in self.batches]
        return sum(n * batch.fpe for n, batch in zip(sizes, self.batches, strict=True)) / sum(sizes)


def name_of(decoder: Decoder) -> str:
    """Its registered name, or that of its class."""
    return next((name for name, cls in decoders.items() if cls is type(decoder)), type(decoder).__qualname__)
