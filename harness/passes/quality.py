"""The quality pass: samples against the sequential ones of the same latents, and against real images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.datasets import Images, load_dataset
from harness.decoders import DecodeResult, build_decoder
from harness.errors import HarnessError
from harness.images import save_grid
from harness.matrix import Quality
from harness.metrics.deviation import Deviation
from harness.metrics.features import FeatureExtractor, feature_extractor
from harness.metrics.quality import Quality as Distances
from harness.metrics.reconstruction import reconstruction
from harness.metrics.reference import ReferenceFeatures, reference_features
from harness.passes.base import Attempt, Bench, Rows, Unit, decode, sample_path
from harness.plan import BASELINE, Cell

REFERENCE_BATCH = 64
"""Batch of the sequential reference and of reconstructions; sequential samples do not depend on it."""
GRID = 64
"""Samples in the grid of a decoder, at most."""
RECONSTRUCTED = 32
"""Real images that are encoded and decoded, at most."""


class Real(NamedTuple):
    """Real images at the flow's size, and their features."""

    images: Images
    extractor: FeatureExtractor
    reference: ReferenceFeatures


class QualityPass:
    """One unit per cell.

    Args:
        bench: what is measured with.
        settings: the matrix's.
        data_root: folder of the real images where the matrix names none.
        inception_weights: for Inception features.
    """

    name = "quality"

    def __init__(
        self, bench: Bench, settings: Quality, data_root: str | None = None, inception_weights: str | None = None
    ) -> None:
        self.bench, self.settings = bench, settings
        self.data_root, self.inception_weights = data_root, inception_weights
        self._kept: dict[str, tuple[Any, Any]] = {}

    def missing(self, cells: Sequence[Cell]) -> list[Unit]:
        """Cells without rows, and those whose row lacks real images that are there now."""
        quality = self.bench.store.read("quality")
        done = set(quality.loc[quality["status"] != "skipped", "cell_id"])
        incomplete = set(quality.loc[(quality["status"] == "ok") & quality["error"].notna(), "cell_id"])
        return [
            Unit(f"{cell.dataset}, {cell.title}", (cell,), self._count(cell) * (1 / cell.batch_size + 1 / 16))
            for cell in cells
            if cell.cell_id not in done or (cell.cell_id in incomplete and self._real(cell).ok)
        ]

    def measure(self, unit: Unit) -> dict[str, Rows]:
        """The row of one cell; its grid of samples is written beside."""
        (cell,) = unit.cells
        failed = self.bench.failed.get(cell.cell_id)
        if failed:
            attempt: Attempt[dict[str, Any]] = Attempt("skipped", failed.error)
        else:
            attempt = self.bench.attempt(cell, self.name, lambda: self._measure(cell))
        # A measured row brings a sentence of its own where there was nothing to compare with.
        return {"quality": [{**cell.identity, **attempt.outcome, **(attempt.value or {})}]}

    def _measure(self, cell: Cell) -> dict[str, Any]:
        flow, decoder, count = self.bench.flow(cell), self.bench.decoder(cell), self._count(cell)
        exact, real = self._exact(cell), self._real(cell)
        distances = real.value and Distances(real.value.reference, real.value.extractor)
        deviation, shown = Deviation(), []
        for indices in _batches(count, cell.batch_size):
            samples = _values(decode(decoder, flow, self.bench.batch(cell, indices)))
            deviation.add(samples, exact[indices.start : indices.stop])
            if distances:
                distances.add(samples)
            if indices.start < GRID:
                shown.append(samples)
        if flow.image_shape is not None:
            path = sample_path(self.bench.store.path, cell)
            save_grid(torch.cat(shown)[:GRID], path, columns=8, scale=max(1, 32 // flow.image_shape[-1]))
        row: dict[str, Any] = {"num_samples": count, "error": real.error}
        if distances:
            row |= distances.result()
            if count < self.settings.num_samples:  # FID is biased by the number of samples: one number per matrix
                row["fid"] = None
        if real.value and cell.guidance is None:
            row["reconstruction_mse"] = self._reconstruction(cell, real.value.images)
        row |= deviation.result()
        if deviation.nonfinite:
            row |= {"status": "non-finite", "error": f"{deviation.nonfinite} of {count} samples are not finite"}
        return row

    def _reconstruction(self, cell: Cell, real: Images) -> float | None:
        flow = self.bench.flow(cell)
        rows = slice(min(RECONSTRUCTED, self._count(cell)))
        labels = real.labels[rows] if flow.num_classes and real.labels is not None else None
        return reconstruction(flow, self.bench.decoder(cell), real.scaled(rows), labels, cell.batch_size).mse

    def _count(self, cell: Cell) -> int:
        return min(self.settings.num_samples, self.settings.max_batches * cell.batch_size)

    def _exact(self, cell: Cell) -> Tensor:
        """The (N, ...) sequential samples that all cells of one flow, guidance and seed are compared with."""

        def sample() -> Tensor:
            flow, decoder = self.bench.flow(cell), build_decoder(BASELINE)
            batches = _batches(self.settings.num_samples, REFERENCE_BATCH)
            return torch.cat([_values(decode(decoder, flow, self.bench.batch(cell, rows))) for rows in batches])

        return self._keep("exact", (cell.checkpoint_digest, cell.guidance, cell.seed, cell.dtype, cell.device), sample)

    def _real(self, cell: Cell) -> Attempt[Real]:
        """Real images of a cell's dataset, or why there are none."""
        return self._keep("real", (cell.dataset, cell.data_root, cell.data_size), lambda: self._load(cell))

    def _load(self, cell: Cell) -> Attempt[Real]:
        shape = self.bench.flow(cell).image_shape
        if shape is None:
            return Attempt("skipped", "the flow's data are no images, so they have no FID")
        try:
            size = cell.data_size or shape[-1]
            images = load_dataset(cell.dataset, "train", root=cell.data_root or self.data_root, size=size)
            if tuple(images.pixels.shape[1:]) != shape:
                raise HarnessError(
                    f"'{cell.dataset}' holds images of shape {tuple(images.pixels.shape[1:])}, the flow's are {shape}"
                )
            extractor = feature_extractor(cell.dataset, self.inception_weights, device=cell.device)
        except HarnessError as error:
            return Attempt("skipped", f"no comparison with real images: {error}")
        return Attempt("ok", value=Real(images, extractor, reference_features(images, extractor)))

    def _keep(self, kind: str, key: Any, make: Any) -> Any:
        """The last thing made of a kind, made again only for another key."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept.pop(kind, None)
            self._kept[kind] = (key, make())
        return self._kept[kind][1]


def _values(result: DecodeResult) -> Tensor:
    """(B, ...) samples on the CPU in float32: images, or tokens where the data are no images."""
    return (result.tokens if result.images is None else result.images).float().cpu()


def _batches(count: int, size: int) -> Iterator[range]:
    """0..count-1 in runs of at most `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
