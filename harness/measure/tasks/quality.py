"""Quality: samples against the sequential ones of the same latents, and against real images.

Where a cell has many samples, or many workers wait, shards of them are measured first, and what they come to is merged
here: features and sums of squares, not distances.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.datasets import Images, datasets, load_dataset
from harness.errors import HarnessError, because
from harness.measure.cells import Cell
from harness.measure.matrix import Quality
from harness.measure.references import reference_name
from harness.measure.tasks.sums import REFERENCE_BATCH, Sums, exact_samples, measure_samples
from harness.measure.units import Attempt, Bench, Rows, Unit, batches, failed_cells, sample_file
from harness.metrics.features import FeatureExtractor, feature_extractor
from harness.metrics.perceptual import Perceptual
from harness.metrics.quality import ReferenceFeatures, distances, features_of, reference_features, shipped_reference
from harness.metrics.reconstruction import reconstruction
from harness.runs.store import RunStore

SHARD = 4096
"""Samples of a cell that are measured by one process, at most; results do not depend on it."""
SHARDS = "shards"
"""Folder in the run folder where the sums of shards wait to be merged."""
RECONSTRUCTED = 32
"""Real images that are encoded and decoded, at most."""


class Real(NamedTuple):
    """What samples are compared with."""

    images: Images | None  # at the flow's size, or None where they are not at hand and shipped features stand in
    extractor: FeatureExtractor  # of the features
    reference: ReferenceFeatures  # their features: of the train split, or those shipped of the test split
    reason: str | None = None  # why the images are not at hand


@dataclass(frozen=True)
class QualityTask:
    """One unit per cell.

    Args:
        references: digest of what the samples of each dataset are compared with, see `harness.measure.references`.
        shard: samples from which on a cell is split. Shards are whole batches, since a batch is the scope of most
            stopping rules: a sample is the same, and so is every figure, however a cell is split.
    """

    settings: Quality  # the matrix's
    data_root: str | None = None  # folder of the real images where the matrix names none
    inception_weights: str | None = None  # for Inception features
    skip_corrupt: bool = False  # leave corrupt real images out and count them
    references: Mapping[str, str | None] = field(default_factory=dict)
    shard: int = SHARD

    name: ClassVar[str] = "quality"
    exclusive: ClassVar[bool] = False

    def missing(self, cells: Sequence[Cell], store: RunStore) -> list[Unit]:
        quality = store.read("quality")
        done = set(quality.loc[quality["status"] != "skipped", "cell_id"])
        incomplete = set(quality.loc[(quality["status"] == "ok") & quality["error"].notna(), "cell_id"])
        here, failed = Bench(""), failed_cells(store)
        units = []
        for cell in cells:
            real = self._real(cell, here).value if cell.cell_id in incomplete else None
            if cell.cell_id not in done or (real is not None and real.images is not None):
                shards = [] if cell.cell_id in failed else list(self.shards(cell))
                split = len(shards) > 1
                cost = self._count(cell) * (0 if split else 1 / cell.batch_size + 1 / 16) + 1
                inputs = tuple(shard_file(cell, indices) for indices in shards) if split else ()
                units.append(Unit(f"{cell.flow}, {cell.title}", (cell,), cost, tables=(self.name,), inputs=inputs))
        return units

    def together(self, unit: Unit) -> Hashable:
        """Cells that are compared with the same sequential samples; where these are known, of one batch size."""
        (cell,) = unit.subjects
        return shared_samples(cell), cell.dataset, cell.batch_size if unit.inputs else None

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (cell,) = unit.subjects
        if failed := bench.failed.get(cell.cell_id):
            return {"quality": [quality_row(cell, Attempt("skipped", failed.error))]}
        return {"quality": [quality_row(cell, bench.attempt(cell, self.name, lambda: self._measure(cell, bench)))]}

    def shards(self, cell: Cell) -> Iterator[range]:
        """The global sample indices of a cell in runs of at least `shard`, whole batches."""
        return batches(range(self._count(cell)), _whole_batches(self.shard, cell.batch_size))

    def sums(self, cell: Cell, indices: range, bench: Bench) -> Sums:
        real = self._real(cell, bench).value
        exact, flow, decoder = self._exact(cell, indices, bench), bench.flow(cell), bench.decoder(cell)
        perceptual = bench.keep("perceptual", None, Perceptual) if flow.image_shape else None
        sums = measure_samples(cell, flow, decoder, indices, exact, real and real.extractor, perceptual)
        if real and sums.features:  # the same for all cells of these samples
            key = (shared_samples(cell), cell.dataset, cell.data_root, indices)
            sums.exact_features = [bench.keep("exact features", key, lambda: features_of(exact, real.extractor))]
        return sums

    def _measure(self, cell: Cell, bench: Bench) -> dict[str, Any]:
        flow, count, real = bench.flow(cell), self._count(cell), self._real(cell, bench)
        sums = Sums() if bench.inputs else self.sums(cell, range(count), bench)
        for data in bench.inputs:
            sums.merge(Sums.from_bytes(data))
        if flow.image_shape is not None:
            bench.add_grid(sample_file(cell), torch.cat(sums.shown), columns=8)
        scores = {name: total.score for name, total in sums.perceptual.items()}
        row: dict[str, Any] = {
            "num_samples": count,
            "error": real.value.reason if real.value else real.error,
            "nonfinite_retries": sums.nonfinite_retries,
            **{name: score.value for name, score in scores.items()},
            "perceptual_error": "; ".join(f"{name}: {one.reason}" for name, one in scores.items() if one.reason)
            or None,
        }
        missing = [row["error"]]
        if real.value:
            try:
                if sums.features_error:
                    raise HarnessError(sums.features_error)
                key, reference = (shared_samples(cell), cell.dataset, cell.data_root, count), real.value.reference
                exact = bench.keep("exact distances", key, lambda: reference.to(np.concatenate(sums.exact_features)))
                row |= distances(np.concatenate(sums.features), reference, exact)
            except Exception as error:  # an optional measure costs its own columns
                missing.append(f"no FID: {because(error)}")
            row["reference_digest"] = self.references.get(reference_name(cell.dataset, cell.data_root))
            row["reference"] = "train" if real.value.images else "shipped-test"
            if count < self.settings.num_samples:  # FID is biased by the number of samples: one number per matrix
                row |= dict.fromkeys(("fid", "fid_rise_low", "fid_rise_high"))
        if real.value and real.value.images:
            row["skipped_images"] = real.value.images.skipped
            if cell.guidance is None and cell.denoise is None:
                try:
                    row["reconstruction_mse"] = self._reconstruction(cell, real.value.images, bench)
                except Exception as error:
                    missing.append(f"no reconstruction: {because(error)}")
        row["error"] = "; ".join(filter(None, missing)) or None
        row |= sums.deviation.result() | sums.certificate
        if bad := sums.deviation.nonfinite:
            row |= {"status": "non-finite", "error": f"{bad} of {count} samples are not finite"}
        return row

    def _reconstruction(self, cell: Cell, real: Images, bench: Bench) -> float | None:
        flow = bench.flow(cell)
        rows = slice(min(RECONSTRUCTED, self._count(cell)))
        labels = real.labels[rows] if flow.num_classes and real.labels is not None else None
        return reconstruction(flow, bench.decoder(cell), real.scaled(rows), labels, cell.batch_size).mse

    def _count(self, cell: Cell) -> int:
        return min(self.settings.num_samples, self.settings.max_batches * cell.batch_size)

    def _exact(self, cell: Cell, indices: range, bench: Bench) -> Tensor:
        """(n, ...) sequential samples: made a chunk at a time, each chunk once for all cells that share them."""
        chunks: dict[int, Tensor] = bench.keep("exact", shared_samples(cell), dict)
        starts = range(indices.start // REFERENCE_BATCH * REFERENCE_BATCH, indices.stop, REFERENCE_BATCH)
        for start in starts:
            if start not in chunks:
                rows = range(start, min(start + REFERENCE_BATCH, self.settings.num_samples))
                chunks[start] = exact_samples(cell, bench.flow(cell), rows)
        skipped = indices.start - starts.start
        return torch.cat([chunks[start] for start in starts])[skipped : skipped + len(indices)]

    def _real(self, cell: Cell, bench: Bench) -> Attempt[Real]:
        return bench.keep("real", (cell.dataset, cell.data_root, cell.data_size), lambda: self._load(cell, bench))

    def _load(self, cell: Cell, bench: Bench) -> Attempt[Real]:
        return real_images(
            cell.dataset, bench.flow(cell).image_shape, cell.data_size, cell.device, cell.data_root or self.data_root,
            self.inception_weights, self.skip_corrupt,
        )  # fmt: skip


def real_images(
    dataset: str,
    shape: tuple[int, int, int] | None,
    size: int | None = None,
    device: str = "cpu",
    data_root: str | None = None,
    inception_weights: str | None = None,
    skip_corrupt: bool = False,
) -> Attempt[Real]:
    """What samples of shape (C, H, W) are compared with, or why with nothing; a `size` in place of the samples' own."""
    if shape is None:
        return Attempt("skipped", "the flow's data are no images, so they have no FID")
    nothing = "no comparison with real images"
    if sentence := unknown_dataset(dataset):
        return Attempt("skipped", f"{nothing}: {sentence}")
    try:
        extractor = feature_extractor(dataset, inception_weights, device=device, root=data_root)
    except Exception as error:
        return Attempt("skipped", f"{nothing}: {because(error)}")
    try:
        images = load_dataset(dataset, "train", root=data_root, size=size or shape[-1], skip_corrupt=skip_corrupt)
        images = images.of_shape(shape, f"'{dataset}'")
        return Attempt("ok", value=Real(images, extractor, reference_features(images, extractor)))
    except Exception as error:  # whatever a plugin's dataset or a network raises
        shipped = shipped_reference(dataset, extractor, shape)
        if shipped is None:
            return Attempt("skipped", f"{nothing}: {because(error)}")
        reason = f"compared with the features of the test split that are shipped, since {because(error)}"
        return Attempt("ok", value=Real(None, extractor, shipped, reason))


def compared(images: Tensor, dataset: str, device: str = "cpu", data_root: str | None = None) -> str:
    """FID and KID of (N, C, H, W) images to the real ones of a dataset, as a sentence that says what they rest on.

    Raises HarnessError: too few images, no such dataset, or none of its images and features at hand.
    """
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    real = real_images(dataset, shape, device=device, data_root=data_root)
    if real.value is None:
        raise HarnessError(real.error or "")
    found = distances(features_of(images, real.value.extractor), real.value.reference)
    if found["fid"] is None:
        raise HarnessError("FID needs at least 3 samples")
    return (
        f"FID {found['fid']:.4g}, KID {found['kid']:.4f} ± {found['kid_std']:.4f}, {found['num_samples']} samples to "
        f"{found['num_reference']} images of {dataset}, features of {found['fid_features']}; FID is biased at few "
        "samples: compare it at equal numbers only"
    )


def unknown_dataset(name: str) -> str | None:
    """That a name is no dataset's, and how to give one; None where it is."""
    try:
        datasets.get(name)
    except HarnessError as error:
        return f"{error}; --dataset NAME says what the flow was trained on"
    return None


@dataclass(frozen=True)
class ShardsTask:
    """The samples of cells that are split, one unit per shard: its sums are a file until `QualityTask` has them."""

    quality: QualityTask

    name: ClassVar[str] = "samples"
    exclusive: ClassVar[bool] = False

    def missing(self, cells: Sequence[Cell], store: RunStore) -> list[Unit]:
        return [
            Unit(
                f"{unit.title}, samples {indices.start} to {indices.stop - 1}",
                unit.subjects,
                len(indices) * (1 / unit.subjects[0].batch_size + 1 / 16),
                indices=indices,
            )
            for unit in self.quality.missing(cells, store)
            if unit.inputs
            for indices, name in zip(self.quality.shards(unit.subjects[0]), unit.inputs, strict=True)
            if not (store.path / name).is_file()
        ]

    def together(self, unit: Unit) -> Hashable:
        (cell,) = unit.subjects
        assert unit.indices is not None
        number = unit.indices.start // _whole_batches(self.quality.shard, cell.batch_size)
        return shared_samples(cell), cell.dataset, number

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (cell,), indices = unit.subjects, unit.indices
        assert indices is not None
        attempt = bench.attempt(cell, self.name, lambda: self.quality.sums(cell, indices, bench))
        if attempt.value is None:
            return {"quality": [quality_row(cell, Attempt(attempt.status, attempt.error))]}
        bench.files[shard_file(cell, indices)] = attempt.value.to_bytes()
        return {}


def shard_file(cell: Cell, indices: range) -> str:
    """Where in the run folder the sums of a shard are."""
    return f"{SHARDS}/{cell.cell_id}-{indices.start}-{indices.stop}.safetensors"


def shared_samples(cell: Cell) -> Hashable:
    """Cells with equal keys are compared with the same sequential samples."""
    return cell.checkpoint_digest, cell.guidance, cell.denoise, cell.seed, cell.dtype, cell.device


def quality_row(cell: Cell, attempt: Attempt[dict[str, Any]]) -> dict[str, Any]:
    """A row of `quality`; a measured one brings a sentence of its own where there was nothing to compare with."""
    return {**cell.identity, **attempt.outcome, **(attempt.value or {})}


def _whole_batches(at_least: int, size: int) -> int:
    """The smallest multiple of a batch size that is no less."""
    return -(-at_least // size) * size
