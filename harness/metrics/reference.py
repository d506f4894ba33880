"""Features of the real images that generated ones are compared with: computed once, kept by content, or shipped."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harness.datasets import Images
from harness.errors import StoreError
from harness.files import cache_folder, make_folder, replacing
from harness.metrics.features import ASSETS, FeatureExtractor
from harness.metrics.fid import KID_SAMPLES, FeatureStatistics

BATCH = 256


@dataclass(frozen=True)
class ReferenceFeatures:
    """What generated images are compared with.

    Args:
        extractor: name of the features.
        statistics: of all reference images.
        features: (n, D) float32 of some of them, for KID.
    """

    extractor: str
    statistics: FeatureStatistics
    features: NDArray[np.float32]

    @classmethod
    def compute(cls, images: Images, extractor: FeatureExtractor, kept: int = KID_SAMPLES) -> ReferenceFeatures:
        """Features of a split of real images; at most `kept` of them, drawn with a fixed seed, stay for KID."""
        chunks = [extractor(images.scaled(slice(i, i + BATCH))).numpy() for i in range(0, len(images), BATCH)]
        features = np.concatenate(chunks)
        statistics = FeatureStatistics.of(features)
        if len(features) > kept:
            features = features[np.random.default_rng(0).choice(len(features), kept, replace=False)]
        return cls(extractor.name, statistics, features)

    @classmethod
    def load(cls, path: Path, extractor: FeatureExtractor) -> ReferenceFeatures | None:
        """What `save` wrote; None when it is not there, damaged, or of other features."""
        try:
            with safe_open(path, framework="numpy") as file:
                mean, scatter, features, count = (file.get_tensor(n) for n in ("mean", "scatter", "features", "count"))
                name = (file.metadata() or {}).get("extractor")
        except (SafetensorError, OSError):
            return None
        dim = (extractor.dim,)
        fits = mean.shape == dim and scatter.shape == dim * 2 and features.shape[1:] == dim and name == extractor.name
        if not fits or not all(np.isfinite(array).all() for array in (mean, scatter, features)):
            return None
        return cls(extractor.name, FeatureStatistics(int(count), mean, scatter), features)

    def save(self, path: Path, **metadata: str) -> None:
        """Write it to a safetensors file, whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        tensors: dict[str, np.ndarray] = {
            "mean": self.statistics.mean,
            "scatter": self.statistics.scatter,
            "features": self.features,
            "count": np.array(self.statistics.count),
        }
        make_folder(path.parent)
        with replacing(path) as partial:
            save_file(tensors, partial, {"extractor": self.extractor, **metadata})


def reference_features(images: Images, extractor: FeatureExtractor, cache: Path | None = None) -> ReferenceFeatures:
    """Features of real images, computed once for the same images and the same network.

    What is kept is named by a digest of both and computed again when it cannot be read. A cache folder that cannot be
    written costs time, nothing else.

    Args:
        images: the real images.
        extractor: from `feature_extractor`.
        cache: folder of what is kept; in the user's cache folder by default.
    """
    folder = cache if cache is not None else cache_folder() / "references"
    key = hashlib.sha256(f"{extractor.name} {images.digest}".encode()).hexdigest()
    path = folder / f"{key}.safetensors"
    kept = ReferenceFeatures.load(path, extractor)
    if kept is None:
        kept = ReferenceFeatures.compute(images, extractor)
        with contextlib.suppress(StoreError):
            kept.save(path)
    return kept


def shipped_reference(
    dataset: str, extractor: FeatureExtractor, image_shape: tuple[int, int, int] | None = None
) -> ReferenceFeatures | None:
    """Features of a dataset's test split that come with its shipped network, for where its images are not at hand.

    None when nothing is shipped for the dataset, when the features are of another network, or of images of another
    shape than `image_shape`, where that is given: resampled images have other features.
    """
    if image_shape is not None and extractor.image_shape != image_shape:
        return None
    return ReferenceFeatures.load(ASSETS / f"reference-{dataset}.safetensors", extractor)
