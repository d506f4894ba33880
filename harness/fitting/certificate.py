"""What certificates are to deviations: measured on samples of several decoders that were fitted on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.decoders import build_decoder
from harness.decoders.calibration import Calibration
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


def decoders_of(calibration: Calibration) -> list[list[Decoder]]:
    """Decoders whose samples are as inexact as those that are drawn in earnest, each in its own way; and polishing."""
    one = {"iterations": [1], "calibration": calibration}
    jacobi: list[tuple[str, dict[str, Any]]] = [("sejd", {"tau": 0.5}), ("sejd", {"tau": 0.1}), ("ujd", {"tau": 0.5})]
    drawn = [*jacobi, ("fitted", one), ("fitted", one | {"iterations": [2, 1]})]
    polished = [*((*jacobi[0], tolerance) for tolerance in POLISHED), ("fitted", one, POLISHED[1])]
    return [
        [build_decoder(name, certify="state", **options) for name, options in drawn],
        [build_decoder(name, certify=tolerance, **options) for name, options, tolerance in polished],
    ]


@torch.no_grad()
def measured_ratios(
    flow: CausalFlow, calibration: Calibration, samples: int = SAMPLES, seed: int = 0, reporter: Reporter = SILENT
) -> Iterator[Ratio]:
    """What a flow's certificates are to its deviations: first without those of polished samples, then with them.

    Samples are polished by what came first, which the caller has kept for the flow by then.

    Args:
        samples: latents, other ones than with the same seed were fitted on; with classes drawn uniformly.
    """
    batch = ExactBatch.draw(flow, samples, torch.Generator().manual_seed(seed + 2**32), BATCH)
    plain, polishing = decoders_of(calibration)
    reporter.begin(1.0 + len(plain) + len(polishing))
    reporter.unit("calibrate", f"certificates, {samples} samples decoded exactly")
    exact = batch.exact
    low, median, high = _spread([_ratios(batch, exact, decoder, reporter) for decoder in plain])
    yield Ratio(median, low, high, median, low, samples)
    polished_low, polished_median, _ = _spread([_ratios(batch, exact, decoder, reporter) for decoder in polishing])
    yield Ratio(median, low, high, polished_median, polished_low, samples)


def _ratios(batch: ExactBatch, exact: Tensor, decoder: Decoder, reporter: Reporter) -> Tensor:
    """Of the samples of one decoder that deviate by more than rounding; of one that polishes, of those it polished."""
    reporter.advance(1.0)
    reporter.unit("calibrate", f"certificates of several decoders, {len(batch)} samples")
    results = [part.result(decoder) for part in batch.split(BATCH)]
    told = Certificate.joined([found.certificate for found in results if found.certificate is not None])
    found = torch.cat([result.tokens for result in results])
    deviation = (found - exact).double().square().mean(dim=(1, 2)).sqrt().cpu()
    ratio, wanted = told.rms.double() / deviation, told.polished | (decoder.certified_to is None)
    return ratio[ratio.isfinite() & (deviation > ROUNDING) & wanted]


def _spread(ratios: Sequence[Tensor]) -> tuple[float, float, float]:
    """The least 5 % point of any of them, the median of all, and the largest 95 % point; 1 where there are none."""
    known = [ratio for ratio in ratios if len(ratio)]
    if not known:
        return 1.0, 1.0, 1.0
    low, high = (torch.stack([ratio.quantile(share) for ratio in known]) for share in (0.05, 0.95))
    return float(low.min()), float(torch.cat(known).median()), float(high.max())
