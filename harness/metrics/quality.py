"""Generated images against real ones: FID and KID of images that come batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets import Images
from harness.errors import HarnessError
from harness.metrics.features import FeatureExtractor
from harness.metrics.fid import FeatureStatistics, frechet_distance, kernel_distance
from harness.metrics.reference import BATCH, ReferenceFeatures, reference_features


class Quality:
    """FID and KID of images that come batch by batch, against one reference.

    A sample with a number that is not finite has no features: it is left out of both distances and counted, in
    `nonfinite_samples`; `num_samples` counts those that were compared.
    """

    def __init__(self, reference: ReferenceFeatures, extractor: FeatureExtractor) -> None:
        require_same_features(reference, extractor)
        self.reference, self.extractor = reference, extractor
        self.nonfinite_samples = 0
        self._features: list[NDArray[np.float32]] = []

    def add(self, images: Tensor) -> None:
        """Take in a batch of (B, C, H, W) images in [-1, 1]; values outside count as the nearest inside."""
        features = features_of(images, self.extractor)
        self.nonfinite_samples += len(images) - len(features)
        self._features.append(features)

    def result(self) -> dict[str, float | int | str | None]:
        """The columns of the `quality` table that this knows; distances of fewer than three samples are None."""
        features = np.concatenate([np.empty((0, self.extractor.dim), np.float32), *self._features])
        return distances(features, self.reference) | {"nonfinite_samples": self.nonfinite_samples}


def require_same_features(reference: ReferenceFeatures, extractor: FeatureExtractor) -> None:
    """Refuse to compare features of different networks.

    Raises:
        HarnessError: the reference's features are of another network.
    """
    if reference.extractor != extractor.name:
        raise HarnessError(
            f"the reference holds features of '{reference.extractor}', the samples' would be of '{extractor.name}'"
        )


def features_of(images: Tensor, extractor: FeatureExtractor) -> NDArray[np.float32]:
    """(n, D) features of the finite ones among (B, C, H, W) images in [-1, 1]."""
    finite = images[images.isfinite().flatten(1).all(dim=1)]
    chunks = [extractor(batch).numpy() for batch in finite.split(BATCH) if len(batch)]
    return np.concatenate([np.empty((0, extractor.dim), np.float32), *chunks])


def distances(features: NDArray[np.float32], reference: ReferenceFeatures) -> dict[str, float | int | str | None]:
    """FID and KID of (n, D) features of generated images, and what they rest on; None for fewer than three."""
    fid = kid = kid_std = None
    if len(features) >= 3:
        fid = frechet_distance(reference.statistics, FeatureStatistics.of(features))
        kid, kid_std = kernel_distance(features, reference.features)
    return {
        "fid": fid,
        "fid_features": reference.extractor,
        "kid": kid,
        "kid_std": kid_std,
        "num_samples": len(features),
        "num_reference": reference.statistics.count,
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
