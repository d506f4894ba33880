"""What certificates are to deviations: measured on samples of several decoders that were fitted on others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.decoders import build_decoder
from harness.decoders.calibration import Calibration
from harness.decoders.decoder import Decoder
from harness.decoders.exact import ExactBatch
from harness.decoders.trace import Certificate, Level, Ratio
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
MOST_LEVELS, LEVEL, ENOUGH = 8, 128, 40
"""Levels at most; certificates of one at least, where there are so many; those that say something of one decoder."""


def decoders_of(calibration: Calibration) -> list[list[Decoder]]:
    """Decoders whose samples are as inexact as those that are drawn in earnest, each in its own way; and polishing."""
    kept = {"calibration": calibration, "correction": "learned" if calibration.complete else "fitted"}
    jacobi: list[tuple[str, dict[str, Any]]] = [("sejd", {"tau": 0.5}), ("sejd", {"tau": 0.1}), ("ujd", {"tau": 0.5})]
    fitted = [("fitted", kept | {"iterations": iterations}) for iterations in ([1], [2, 1], [4, 2], [7, 3])]
    polished = [(*which, tolerance) for which in (jacobi[0], *fitted[:2]) for tolerance in POLISHED]
    return [
        [build_decoder(name, certify="state", **options) for name, options in (*jacobi, *fitted)],
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
    found = [_pairs(batch, exact, decoder, reporter) for decoder in plain]
    (low, median, high), levels = _spread(found), levels_of(found)
    yield Ratio(median, low, high, median, low, samples, levels, levels)
    found = [_pairs(batch, exact, decoder, reporter) for decoder in polishing]
    (polished_low, polished_median, _), polished = _spread(found), levels_of(found)
    yield Ratio(median, low, high, polished_median, polished_low, samples, levels, polished)


def _pairs(batch: ExactBatch, exact: Tensor, decoder: Decoder, reporter: Reporter) -> Tensor:
    """(2, n) certificates and ratios of a decoder's samples that deviate by more than rounding.

    Of one that polishes: of those that it polished.
    """
    reporter.advance(1.0)
    reporter.unit("calibrate", f"certificates of several decoders, {len(batch)} samples")
    results = [part.result(decoder) for part in batch.split(BATCH)]
    told = Certificate.joined([found.certificate for found in results if found.certificate is not None])
    found = torch.cat([result.tokens for result in results])
    deviation = (found - exact).double().square().mean(dim=(1, 2)).sqrt().cpu()
    ratio, wanted = told.rms.double() / deviation, told.polished | (decoder.certified_to is None)
    return torch.stack([told.rms.double(), ratio])[:, ratio.isfinite() & (deviation > ROUNDING) & wanted]


def levels_of(found: Sequence[Tensor]) -> tuple[Level, ...]:
    """Levels of as many certificates each, from (2, n) certificates and ratios of every decoder.

    Of a level `low` is the least of those of the decoders that have enough samples there, of all samples there, and of
    the levels beside it: other decoders than these leave errors that are told a little otherwise.
    """
    pooled = torch.cat(list(found), dim=1)
    count = pooled.shape[1]
    if not count:
        return ()
    levels, bottom = list[Level](), -math.inf
    for part in pooled[0].sort().values.chunk(min(MOST_LEVELS, max(1, count // LEVEL))):
        top = float(part[-1])
        ratios = [ratio[(rms > bottom) & (rms <= top)] for rms, ratio in (pooled, *found)]
        low = min(conformal_low(some) for some in ratios[:1] + [some for some in ratios[1:] if len(some) >= ENOUGH])
        levels.append(Level(top, float(ratios[0].median()), low))
        bottom = top
    near = [levels[max(0, place - 1) : place + 2] for place in range(len(levels))]
    return tuple(
        replace(level, low=min(other.low for other in others)) for level, others in zip(levels, near, strict=True)
    )


def conformal_low(values: Tensor) -> float:
    """What another one of the same kind is above with a probability of 95 %; with fewer than 19, the least of them."""
    return float(values.sort().values[max(0, math.floor(0.05 * (len(values) + 1)) - 1)])


def _spread(found: Sequence[Tensor]) -> tuple[float, float, float]:
    """The least 5 % point of any of them, the median of all, and the largest 95 % point; 1 where there are none."""
    known = [ratio for _, ratio in found if len(ratio)]
    if not known:
        return 1.0, 1.0, 1.0
    low, high = (torch.stack([ratio.quantile(share) for ratio in known]) for share in (0.05, 0.95))
    return float(low.min()), float(torch.cat(known).median()), float(high.max())
