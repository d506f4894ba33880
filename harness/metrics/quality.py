"""FID and KID of generated images against real ones, whose features are computed once, kept by content, or shipped."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from harness.datasets import Images
from harness.datasets.images import finite_images
from harness.errors import StoreError
from harness.files import cache_folder, make_folder, replacing
from harness.metrics.features import ASSETS, FeatureExtractor
from harness.metrics.fid import (
    GROUPS,
    KID_SAMPLES,
    FeatureStatistics,
    KernelDistance,
    difference_interval,
    fids,
    frechet_distance,
    kernel_distance,
    rise_interval,
    thinned,
)

BATCH = 256
"""Images whose features are computed at a time."""


def features_of(images: Tensor, extractor: FeatureExtractor) -> NDArray[np.float32]:
    """(n, D) features of the finite ones among (B, C, H, W) images in [-1, 1]; values outside count as the nearest."""
    chunks = [extractor(batch).numpy() for batch in finite_images(images).split(BATCH) if len(batch)]
    return np.concatenate([np.empty((0, extractor.dim), np.float32), *chunks])


@dataclass(frozen=True)
class ReferenceFeatures:
    """What generated images are compared with."""

    extractor: str
    """Name of the features."""
    statistics: FeatureStatistics
    """Of all reference images."""
    features: NDArray[np.float32]
    """(n, D) of some of them, for KID."""

    @classmethod
    def compute(cls, images: Images, extractor: FeatureExtractor, kept: int = KID_SAMPLES) -> ReferenceFeatures:
        """Features of a split of real images; at most `kept` of them, drawn with a fixed seed, stay for KID."""
        batches = (images.scaled(slice(start, start + BATCH)) for start in range(0, len(images), BATCH))
        features = np.concatenate([features_of(batch, extractor) for batch in batches])
        statistics = FeatureStatistics.of(features)
        return cls(extractor.name, statistics, thinned(features, kept, np.random.default_rng(0)))

    def to(self, features: NDArray[np.float32]) -> Distances:
        return Distances(features, self)

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
        shapes = (mean.shape, scatter.shape, features.shape[1:])
        if (
            name != extractor.name
            or shapes != (dim, dim * 2, dim)
            or not all(np.isfinite(array).all() for array in (mean, scatter, features))
        ):
            return None
        return cls(extractor.name, FeatureStatistics(int(count), mean, scatter), features)

    def save(self, path: Path, **metadata: str) -> None:
        """Write it to a safetensors file, whole or not at all; a `StoreError` where that cannot be."""
        tensors = {name: np.asarray(value) for name, value in vars(self.statistics).items()}
        make_folder(path.parent)
        with replacing(path) as partial:
            save_file(tensors | {"features": self.features}, partial, {"extractor": self.extractor, **metadata})


def reference_features(images: Images, extractor: FeatureExtractor, cache: Path | None = None) -> ReferenceFeatures:
    """Features of real images, computed once for the same images and the same network.

    They are kept in `cache`, by default in the user's, under a digest of both, and computed again where that file
    cannot be read. A cache folder that cannot be written costs time, nothing else.
    """
    key = hashlib.sha256(f"{extractor.name} {images.digest}".encode()).hexdigest()
    path = (cache or cache_folder() / "references") / f"{key}.safetensors"
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


@dataclass(frozen=True)
class Distances:
    """How far (n, D) features of generated images, three or more, are from a reference."""

    features: NDArray[np.float32]
    reference: ReferenceFeatures

    @cached_property
    def kid(self) -> KernelDistance:
        return kernel_distance(self.features, self.reference.features)

    @cached_property
    def fids(self) -> NDArray[np.float64]:
        """See `harness.metrics.fid.fids`."""
        return fids(self.features, self.reference.statistics)


def distances(
    features: NDArray[np.float32], reference: ReferenceFeatures, exact: Distances | None = None
) -> dict[str, float | int | str | None]:
    """FID and KID of (n, D) features of generated images, and what they rest on; None for fewer than three.

    Beside them the intervals of their differences to `exact`, the sequential samples of the same latents, where these
    are as many and 4 a group of the jackknife or more.
    """
    found, row = reference.to(features), dict.fromkeys(("fid", "kid", "kid_std"))
    if len(features) >= 3:
        row["fid"] = frechet_distance(reference.statistics, FeatureStatistics.of(features))
        row["kid"], row["kid_std"], _ = found.kid
    if exact is not None and len(features) == len(exact.features) >= 4 * GROUPS:
        row["fid_rise_low"], row["fid_rise_high"] = rise_interval(found.fids, exact.fids)
        row["kid_rise_low"], row["kid_rise_high"] = difference_interval(found.kid, exact.kid)
    facts = {"fid_features": reference.extractor, "num_samples": len(features)}
    return row | facts | {"num_reference": reference.statistics.count}
