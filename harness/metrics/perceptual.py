"""CLIP-IQA and BRISQUE, quality without a reference, through piq (the optional extra ``iqa``).

Both need weights that piq downloads. Where the package or the weights are not there, and a download is not allowed,
there is no value but a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.datasets.base import to_pixels
from harness.metrics.torchvision_compat import declare_missing_operators

BATCH = 64


class Score(NamedTuple):
    """A mean over images, or why there is none."""

    value: float | None
    reason: str | None = None


@torch.no_grad()
def perceptual_scores(images: Tensor, allow_download: bool = False) -> dict[str, Score]:
    """Mean CLIP-IQA (arXiv 2207.12396; 0 to 1, higher is better) and BRISQUE (lower is better) of some images.

    Args:
        images: (N, C, H, W) in [-1, 1], grey or RGB, all finite; measured as they would be saved in 8 bits.
        allow_download: let piq fetch weights that are not there.

    Returns:
        A score each under ``"clip_iqa"`` and ``"brisque"``.
    """
    declare_missing_operators()
    try:
        import piq
    except ImportError as error:
        reason = f"piq is not installed ({error}); install the extra 'iqa'"
        return {name: Score(None, reason) for name in ("clip_iqa", "brisque")}
    clip, hub = Path("~/.cache/clip").expanduser(), Path(torch.hub.get_dir()) / "checkpoints"
    metrics: dict[str, tuple[list[Path], Callable[[], Callable[[Tensor], Tensor]]]] = {
        "clip_iqa": ([clip / "RN50.pt", clip / "clipiqa_tokens.pt"], lambda: piq.CLIPIQA(data_range=1.0)),
        "brisque": ([hub / "brisque_svm_weights.pt"], lambda: lambda x: piq.brisque(x, reduction="none")),
    }
    pixels = to_pixels(images.cpu()).float().div(255).expand(-1, 3, -1, -1)
    return {name: _score(pixels, *metric, allow_download) for name, metric in metrics.items()}


def _score(pixels: Tensor, weights: list[Path], build: Callable[[], Any], allow_download: bool) -> Score:
    missing = [path for path in weights if not path.is_file()]
    if missing and not allow_download:
        return Score(None, f"the weights '{missing[0]}' are not there and a download was not allowed")
    try:
        metric = build()
        total = sum(metric(batch).double().sum().item() for batch in pixels.split(BATCH))
    except (OSError, RuntimeError, AssertionError) as error:  # no network; broken weights; images without texture
        return Score(None, " ".join(str(error).split()) or type(error).__name__)
    return Score(total / len(pixels))
