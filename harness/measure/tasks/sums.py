"""What samples of a cell come to: sums that any run of its sample indices gives, and that merge.

Both functions are plain: cell, flow and indices in, values out, so that a run of indices can be measured in another
process, or on another device, and merged here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from harness.decoders import Decoder, DecodeResult, build_decoder
from harness.errors import because
from harness.flows import CausalFlow
from harness.measure.cells import BASELINE, Cell
from harness.measure.units import batch_of, batches, denoise, nonfinite_retries
from harness.metrics.deviation import Deviation
from harness.metrics.features import FeatureExtractor
from harness.metrics.perceptual import Perceptual, Total
from harness.metrics.quality import features_of

REFERENCE_BATCH = 64
"""Batch of the sequential reference and of reconstructions; sequential samples do not depend on it."""
ARRAYS = ("features", "exact_features", "certified")
"""The fields of `Sums` that are arrays, a row per sample."""
GRID = 64
"""Samples in the grid of a decoder, at most."""


@dataclass
class Sums:
    """What the samples with some global indices come to.

    Args:
        features: (n, D) float32 arrays of the finite samples, in order; none where there is nothing to compare with.
        exact_features: of their sequential samples.
        certified: (n, 4), where the decoder certifies: estimated deviation and its upper quantile, NaN where they are
            not calibrated; whether the sample is above the tolerance, and whether it was polished.
        shown: those among the first `GRID` samples of the cell, for its picture.
    """

    deviation: Deviation = field(default_factory=Deviation)  # from the sequential samples of the same latents
    features: list[NDArray[np.float32]] = field(default_factory=list)
    shown: list[Tensor] = field(default_factory=list)
    perceptual: dict[str, Total] = field(default_factory=dict)  # what the samples score without a reference, by name
    features_error: str | None = None  # why there are no features; others' samples alone have no distance
    nonfinite_retries: int = 0  # layers of batches that were decoded again since they were not finite
    exact_features: list[NDArray[np.float32]] = field(default_factory=list)
    certified: list[NDArray[np.float32]] = field(default_factory=list)

    def merge(self, later: Sums) -> None:
        self.deviation.merge(later.deviation)
        self.features += later.features
        self.exact_features += later.exact_features
        self.certified += later.certified
        self.shown += later.shown
        self.features_error = self.features_error or later.features_error
        for name, total in later.perceptual.items():
            self.perceptual.setdefault(name, Total()).merge(total)
        self.nonfinite_retries += later.nonfinite_retries

    def to_bytes(self) -> bytes:
        facts = {
            "deviation": asdict(self.deviation),
            "perceptual": {name: asdict(total) for name, total in self.perceptual.items()},
            "features_error": self.features_error,
            "nonfinite_retries": self.nonfinite_retries,
        }
        tensors = {"facts": torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)}
        for name in ARRAYS:
            if found := getattr(self, name):
                tensors[name] = torch.from_numpy(np.concatenate(found))
        if self.shown:
            tensors["shown"] = torch.cat(self.shown)
        return save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        tensors = load(data)
        facts = json.loads(bytes(tensors["facts"].tolist()))
        return cls(
            Deviation(**facts["deviation"]),
            shown=[tensors["shown"]] if "shown" in tensors else [],
            perceptual={name: Total(**total) for name, total in facts["perceptual"].items()},
            features_error=facts["features_error"],
            nonfinite_retries=facts["nonfinite_retries"],
            **{name: [tensors[name].numpy()] for name in ARRAYS if name in tensors},
        )

    @property
    def certificate(self) -> dict[str, Any]:
        """Of all samples: what the table `quality` has of it, null where nothing was certified."""
        if not self.certified:
            return {}
        told = np.concatenate(self.certified).astype(np.float64)
        values = {"certified_median": np.median(told[:, 0]), "certified_max": told[:, 0].max()}
        values |= {"certified_upper": told[:, 1].max(), "above_tolerance": told[:, 2].mean()}
        plain = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
        return plain | {"polished": int(told[:, 3].sum())}


def measure_samples(
    cell: Cell,
    flow: CausalFlow,
    decoder: Decoder,
    indices: range,
    exact: Tensor,
    extractor: FeatureExtractor | None = None,
    perceptual: Perceptual | None = None,
) -> Sums:
    """Decode the samples of a cell with these global indices, in its batches, and sum them up.

    Args:
        indices: consecutive; their start is a multiple of the batch size, since a batch is the scope of most stopping
            rules, so that a sample is the same however a cell is split.
        exact: (n, ...) their sequential samples, see `exact_samples`.
        extractor: of the features, or None for none.
        perceptual: scores without a reference, or None for none.
    """
    sums = Sums()
    for rows in batches(indices, cell.batch_size):
        samples, result = draw(cell, flow, decoder, rows)
        sums.nonfinite_retries += nonfinite_retries(result)
        if (told := result.certificate) is not None:
            unknown = torch.full_like(told.rms, torch.nan)
            columns = told.estimate, told.upper, told.above, told.polished
            sums.certified.append(
                torch.stack([unknown if one is None else one.float() for one in columns], dim=1).cpu().numpy()
            )
        sums.deviation.add(samples, exact[rows.start - indices.start : rows.stop - indices.start])
        if extractor is not None and sums.features_error is None:
            try:
                sums.features.append(features_of(samples, extractor))
            except Exception as error:  # an optional measure costs its own columns
                sums.features_error = because(error)
        if perceptual is not None:
            sums.merge(Sums(perceptual=perceptual(samples)))
        if rows.start < GRID:
            sums.shown.append(samples[: GRID - rows.start])
    return sums


def exact_samples(cell: Cell, flow: CausalFlow, indices: range) -> Tensor:
    """(n, ...) sequential samples with these global indices, shared by all cells whose samples differ by decoder alone.

    They are denoised where the cell's are.
    """
    decoder = build_decoder(BASELINE)
    return torch.cat([draw(cell, flow, decoder, rows)[0] for rows in batches(indices, REFERENCE_BATCH)])


def draw(cell: Cell, flow: CausalFlow, decoder: Decoder, rows: range) -> tuple[Tensor, DecodeResult]:
    """(B, ...) samples on the CPU in float32, denoised where the cell asks for it, and what the decode returned.

    They are images, or tokens where the data are no images.
    """
    batch = batch_of(cell, flow, rows)
    result = batch.result(decoder)
    if cell.denoise is not None:
        samples = denoise(result, batch, cell.denoise)
    else:
        samples = result.tokens if result.images is None else result.images
    return samples.float().cpu(), result
