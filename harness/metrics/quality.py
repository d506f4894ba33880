"""Generated images against a reference: FID and KID, batch by batch, with reference features kept by content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from harness.datasets.base import Images
from harness.errors import HarnessError
from harness.metrics.features import FeatureExtractor, cache_folder
from harness.metrics.fid import KID_SAMPLES, FeatureStatistics, frechet_distance, kernel_distance

BATCH = 256


@dataclass(frozen=True)
class ReferenceFeatures:
    """What generated images are compared with.

    Args:
        extractor: name of the features.
        statistics: of all reference images.
        features: (n, D) float32 of at most `KID_SAMPLES` of them, for KID.
    """

    extractor: str
    statistics: FeatureStatistics
    features: NDArray[np.float32]

    @classmethod
    def compute(cls, images: Images, extractor: FeatureExtractor) -> ReferenceFeatures:
        """Features of a split of real images; `KID_SAMPLES` of them, drawn with a fixed seed, are kept for KID."""
        chunks = [extractor(images.scaled(slice(i, i + BATCH))).numpy() for i in range(0, len(images), BATCH)]
        features = np.concatenate(chunks)
        statistics = FeatureStatistics.of(features)
        if len(features) > KID_SAMPLES:
            features = features[np.random.default_rng(0).choice(len(features), KID_SAMPLES, replace=False)]
        return cls(extractor.name, statistics, features)


class Quality:
    """FID and KID of images that come batch by batch, against one reference.

    A sample with a number that is not finite has no features: it is left out of both distances and counted, in
    `nonfinite_samples`; `num_samples` counts those that were compared.
    """

    def __init__(self, reference: ReferenceFeatures, extractor: FeatureExtractor) -> None:
        if reference.extractor != extractor.name:
            raise HarnessError(
                f"the reference holds features of '{reference.extractor}', the samples' would be of '{extractor.name}'"
            )
        self.reference, self.extractor = reference, extractor
        self.nonfinite_samples = 0
        self._features: list[NDArray[np.float32]] = []

    def add(self, images: Tensor) -> None:
        """Take in a batch of (B, C, H, W) images in [-1, 1]; values outside count as the nearest inside."""
        finite = images.isfinite().flatten(1).all(dim=1)
        self.nonfinite_samples += int((~finite).sum())
        for batch in images[finite].split(BATCH):
            if len(batch):
                self._features.append(self.extractor(batch).numpy())

    def result(self) -> dict[str, float | int | str | None]:
        """The columns of the `quality` table that this knows; distances of fewer than three samples are None."""
        features = np.concatenate([np.empty((0, self.extractor.dim), np.float32), *self._features])
        fid = kid = kid_std = None
        if len(features) >= 3:
            fid = frechet_distance(self.reference.statistics, FeatureStatistics.of(features))
            kid, kid_std = kernel_distance(features, self.reference.features)
        return {
            "fid": fid,
            "fid_features": self.extractor.name,
            "kid": kid,
            "kid_std": kid_std,
            "num_samples": len(features),
            "num_reference": self.reference.statistics.count,
            "nonfinite_samples": self.nonfinite_samples,
        }


def quality_against(
    reference: Images, images: Tensor, extractor: FeatureExtractor, cache: Path | None = None
) -> dict[str, float | int | str | None]:
    """FID and KID of generated images against real ones.

    Args:
        reference: the real images.
        images: (N, C, H, W) in [-1, 1].
        extractor: from `feature_extractor`.
        cache: folder of reference features; the user's own by default.

    Returns:
        fid, fid_features, kid, kid_std, num_samples, num_reference and nonfinite_samples.
    """
    quality = Quality(reference_features(reference, extractor, cache), extractor)
    quality.add(images)
    return quality.result()


def reference_features(images: Images, extractor: FeatureExtractor, cache: Path | None = None) -> ReferenceFeatures:
    """Features of real images, computed once for the same images and the same network.

    What is kept is named by a digest of both, written whole or not at all, and computed again when it cannot be read.
    A cache folder that cannot be written costs time, nothing else.
    """
    folder = cache if cache is not None else cache_folder() / "references"
    key = hashlib.sha256(f"1 {extractor.name} {images.digest}".encode()).hexdigest()
    path = folder / f"{key}.safetensors"
    kept = _read(path, extractor)
    if kept is None:
        kept = ReferenceFeatures.compute(images, extractor)
        _write(path, kept)
    return kept


def _read(path: Path, extractor: FeatureExtractor) -> ReferenceFeatures | None:
    try:
        with safe_open(path, framework="numpy") as file:
            mean, scatter, features, count = (file.get_tensor(n) for n in ("mean", "scatter", "features", "count"))
    except (SafetensorError, OSError):
        return None
    shapes = mean.shape == (extractor.dim,) and scatter.shape == (extractor.dim,) * 2
    if (
        not shapes
        or features.shape[1:] != mean.shape
        or not all(np.isfinite(a).all() for a in (mean, scatter, features))
    ):
        return None
    return ReferenceFeatures(extractor.name, FeatureStatistics(int(count), mean, scatter), features)


def _write(path: Path, kept: ReferenceFeatures) -> None:
    tensors: dict[str, np.ndarray] = {
        "mean": kept.statistics.mean,
        "scatter": kept.statistics.scatter,
        "features": kept.features,
        "count": np.array(kept.statistics.count),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            save_file(tensors, Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    except OSError:
        return
