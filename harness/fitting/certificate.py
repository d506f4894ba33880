"""What certificates are to deviations: measured on samples of several decoders that were fitted on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.decoders import build_decoder
from harness.decoders.calibration import Calibration
from harness.decoders.certificate import SHARES
from harness.decoders.decoder import Decoder
from harness.decoders.exact import ExactBatch
from harness.decoders.trace import Certificate, Ratio
from harness.flows.protocols import CausalFlow
from harness.progress import SILENT, Reporter

SAMPLES = 256
"""Latents that are decoded, by every decoder."""
BATCH = 64
"""Samples decoded together."""
ROUNDING = 1e-5
"""Deviations below are rounding, and say nothing of the ratio."""


POLISHED = (0.05, 0.01)
"""Tolerances that samples are polished to."""


def decoders_of(calibration: Calibration) -> list[Decoder]:
    """Decoders whose samples are as inexact as those that are drawn in earnest, each in its own way.

    The last ones, as many as `POLISHED`, leave a layer when polishing would.
    """
    jacobi = [("sejd", {"tau": 0.5}), ("sejd", {"tau": 0.1}), ("ujd", {"tau": 0.5})]
    fitted = [("fitted", {"iterations": each, "calibration": calibration}) for each in ([1], [2, 1])]
    polished = [("ujd", {"tau": SHARES[0] * one, "norm": "rms", "scope": "sample"}) for one in POLISHED]
    specs: list[tuple[str, dict[str, Any]]] = [*jacobi, *fitted, *polished]
    return [build_decoder(name, certify="state", **options) for name, options in specs]


@torch.no_grad()
def measure_ratio(
    flow: CausalFlow, calibration: Calibration, samples: int = SAMPLES, seed: int = 0, reporter: Reporter = SILENT
) -> Ratio:
    """What a flow's certificates are to its deviations; 1 where no decoder left any deviation.

    Args:
        samples: latents, other ones than with the same seed were fitted on; with classes drawn uniformly.
    """
    batch = ExactBatch.draw(flow, samples, torch.Generator().manual_seed(seed + 2**32), BATCH)
    decoders, ratios = decoders_of(calibration), []
    reporter.begin(1.0 + len(decoders))
    reporter.unit("calibrate", f"certificates, {samples} samples decoded exactly")
    exact = batch.exact
    for decoder in decoders:
        reporter.advance(1.0)
        reporter.unit("calibrate", f"certificates of {len(decoders)} decoders, {samples} samples")
        results = [part.result(decoder) for part in batch.split(BATCH)]
        deviation = (torch.cat([found.tokens for found in results]) - exact).double().square().mean(dim=(1, 2)).sqrt()
        told = Certificate.joined([found.certificate for found in results if found.certificate is not None])
        ratio = told.rms.double() / deviation.cpu()
        ratios.append(ratio[ratio.isfinite() & (deviation.cpu() > ROUNDING)])
    reporter.advance(1.0)
    low, median, _ = _spread(ratios[-len(POLISHED) :])
    drawn = dict(zip(("low", "median", "high"), _spread(ratios[: -len(POLISHED)]), strict=True))
    return Ratio(**drawn, polished_median=median, polished_low=low, samples=samples)


def _spread(ratios: Sequence[Tensor]) -> tuple[float, float, float]:
    """The least 5 % point of any of them, the median of all, and the largest 95 % point; 1 where there are none."""
    known = [ratio for ratio in ratios if len(ratio)]
    if not known:
        return 1.0, 1.0, 1.0
    low, high = (torch.stack([ratio.quantile(share) for ratio in known]) for share in (0.05, 0.95))
    return float(low.min()), float(torch.cat(known).median()), float(high.max())
