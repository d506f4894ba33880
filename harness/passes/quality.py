"""The quality pass: samples against the sequential ones of the same latents, and against real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.datasets import Images, load_dataset
from harness.errors import HarnessError
from harness.images import save_grid
from harness.matrix import Quality
from harness.metrics.features import FeatureExtractor, feature_extractor
from harness.metrics.quality import distances
from harness.metrics.reconstruction import reconstruction
from harness.metrics.reference import ReferenceFeatures, reference_features
from harness.passes.base import Attempt, Bench, Rows, Unit, sample_path
from harness.passes.sums import REFERENCE_BATCH, Sums, batches, exact_samples, measure_samples
from harness.plan import Cell

RUN = 256
"""Samples that are summed up at a time, whole batches."""
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
        sums = Sums()
        for indices in batches(range(self._count(cell)), _whole_batches(RUN, cell.batch_size)):
            sums.merge(self._sums(cell, indices))
        return self._row(cell, sums)

    def _sums(self, cell: Cell, indices: range) -> Sums:
        """What a run of a cell's samples comes to."""
        real = self._real(cell).value
        return measure_samples(
            cell,
            self.bench.flow(cell),
            self.bench.decoder(cell),
            indices,
            self._exact(cell, indices),
            real and real.extractor,
        )

    def _row(self, cell: Cell, sums: Sums) -> dict[str, Any]:
        """The columns of a cell whose samples were all measured; its picture is written beside."""
        flow, count, real = self.bench.flow(cell), self._count(cell), self._real(cell)
        if flow.image_shape is not None:
            path = sample_path(self.bench.store.path, cell)
            save_grid(torch.cat(sums.shown), path, columns=8, scale=max(1, 32 // flow.image_shape[-1]))
        row: dict[str, Any] = {"num_samples": count, "error": real.error}
        if real.value:
            row |= distances(np.concatenate(sums.features), real.value.reference)
            if count < self.settings.num_samples:  # FID is biased by the number of samples: one number per matrix
                row["fid"] = None
        if real.value and cell.guidance is None:
            row["reconstruction_mse"] = self._reconstruction(cell, real.value.images)
        row |= sums.deviation.result()
        if bad := sums.deviation.nonfinite:
            row |= {"status": "non-finite", "error": f"{bad} of {count} samples are not finite"}
        return row

    def _reconstruction(self, cell: Cell, real: Images) -> float | None:
        flow = self.bench.flow(cell)
        rows = slice(min(RECONSTRUCTED, self._count(cell)))
        labels = real.labels[rows] if flow.num_classes and real.labels is not None else None
        return reconstruction(flow, self.bench.decoder(cell), real.scaled(rows), labels, cell.batch_size).mse

    def _count(self, cell: Cell) -> int:
        return min(self.settings.num_samples, self.settings.max_batches * cell.batch_size)

    def _exact(self, cell: Cell, indices: range) -> Tensor:
        """(n, ...) sequential samples: made a chunk at a time, each chunk once for all cells that share them."""
        shared = (cell.checkpoint_digest, cell.guidance, cell.seed, cell.dtype, cell.device)
        chunks: dict[int, Tensor] = self._keep("exact", shared, dict)
        starts = range(indices.start // REFERENCE_BATCH * REFERENCE_BATCH, indices.stop, REFERENCE_BATCH)
        for start in starts:
            if start not in chunks:
                rows = range(start, min(start + REFERENCE_BATCH, self.settings.num_samples))
                chunks[start] = exact_samples(cell, self.bench.flow(cell), rows)
        skipped = indices.start - starts.start
        return torch.cat([chunks[start] for start in starts])[skipped : skipped + len(indices)]

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
        reference = reference_features(images, extractor)
        return Attempt("ok", value=Real(images, extractor, reference))

    def _keep(self, kind: str, key: Any, make: Any) -> Any:
        """The last thing made of a kind, made again only for another key."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept.pop(kind, None)
            self._kept[kind] = (key, make())
        return self._kept[kind][1]


def _whole_batches(at_least: int, size: int) -> int:
    """The smallest multiple of a batch size that is no less."""
    return -(-at_least // size) * size
