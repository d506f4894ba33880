"""CLIP-IQA and BRISQUE, quality without a reference, through piq (the optional extra ``iqa``).

Both need weights that piq downloads. Where the package or the weights are not there, and a download is not allowed,
there is no value but a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from harness.datasets import to_pixels
from harness.datasets.images import finite_images
from harness.errors import because
from harness.files import shown
from harness.metrics.torchvision_compat import declare_missing_operators

BATCH = 64


class Score(NamedTuple):
    """A mean over images, or why there is none."""

    value: float | None
    reason: str | None = None


@dataclass
class Total:
    """The sum of a score over images, or why there is none."""

    sum: float = 0.0
    count: int = 0
    reason: str | None = None

    def merge(self, other: Total) -> None:
        """Take in what other images scored."""
        self.sum, self.count = self.sum + other.sum, self.count + other.count
        self.reason = self.reason or other.reason

    @property
    def score(self) -> Score:
        """The mean; none where a batch had no score, since a mean over the others would be of other images."""
        if self.reason is not None or not self.count:
            return Score(None, self.reason or "there were no images")
        return Score(self.sum / self.count)


class Perceptual:
    """CLIP-IQA (arXiv 2207.12396; 0 to 1, higher is better) and BRISQUE (lower is better); networks are built once."""

    def __init__(self, allow_download: bool = False) -> None:
        clip, hub = Path("~/.cache/clip").expanduser(), Path(torch.hub.get_dir()) / "checkpoints"
        needed = {
            "clip_iqa": [clip / "RN50.pt", clip / "clipiqa_tokens.pt"],
            "brisque": [hub / "brisque_svm_weights.pt"],
        }
        self._metrics = {name: _metric(name, weights, allow_download) for name, weights in needed.items()}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Total]:
        """What (N, C, H, W) images in [-1, 1], grey or RGB, score, as they would be saved in 8 bits.

        Those that are not finite are left out.
        """
        pixels = to_pixels(finite_images(images).cpu()).float().div(255).expand(-1, 3, -1, -1)
        return {name: _total(metric, pixels) for name, metric in self._metrics.items()}


def _metric(name: str, weights: list[Path], allow_download: bool) -> Callable[[Tensor], Tensor] | str:
    """The score of each image of a batch, or why there is none."""
    try:
        declare_missing_operators()
        import piq
    except Exception as error:  # also what an import of its own raises, as of compiled operators
        return f"piq cannot be imported ({error}); install the extra 'iqa'"
    missing = [path for path in weights if not path.is_file()]
    if missing and not allow_download:
        return f"the weights '{shown(missing[0])}' are not there and a download was not allowed"
    try:
        return piq.CLIPIQA(data_range=1.0) if name == "clip_iqa" else partial(piq.brisque, reduction="none")
    except Exception as error:  # no network; broken weights: it costs its own column, whatever it is
        return because(error)


def _total(metric: Callable[[Tensor], Tensor] | str, pixels: Tensor) -> Total:
    if isinstance(metric, str):
        return Total(reason=metric)
    try:
        sums = [metric(batch).double().sum().item() for batch in pixels.split(BATCH) if len(batch)]
    except Exception as error:  # broken weights; images without texture
        return Total(reason=because(error))
    return Total(sum(sums), len(pixels))
