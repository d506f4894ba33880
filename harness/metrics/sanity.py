"""Does a distance rise with what is wrong with the images? Real held-out images, made worse step by step."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from harness.datasets import Images
from harness.metrics.features import FeatureExtractor
from harness.metrics.quality import ReferenceFeatures, distances, features_of

NOISE = (0.05, 0.1, 0.2, 0.4)
"""Standard deviations of added Gaussian noise, in image units ([-1, 1])."""
BLUR = (0.5, 0.75, 1.0, 2.0)
"""Standard deviations of a Gaussian blur, in pixels."""
DROPPED = (2, 4, 6, 8)
"""Modes dropped, of the classes or, where there are fewer than `MODES`, of that many clusters."""
MODES = 10


def sanity_table(train: Images, test: Images, extractor: FeatureExtractor, seed: int = 0) -> pd.DataFrame:
    """Distances of the test split, as it is (level 0) and made worse, to the train split: a row per change and level.

    Dropping modes leaves fewer samples, which raises FID by itself but not KID.
    """
    reference = ReferenceFeatures.compute(train, extractor)
    images = test.scaled()
    modes = _modes(test, seed)
    order = torch.randperm(int(modes.max()) + 1, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    changes: dict[str, dict[float, Tensor]] = {
        "noise": {sigma: images + sigma * noise for sigma in NOISE},
        "blur": {sigma: torch.from_numpy(gaussian_filter(images, (0, 0, sigma, sigma))) for sigma in BLUR},
        "modes dropped": {number: images[~torch.isin(modes, order[:number])] for number in DROPPED},
    }
    rows = [
        {"change": change, "level": level, **distances(features_of(changed, extractor), reference)}
        for change, levels in changes.items()
        for level, changed in {0.0: images, **levels}.items()
    ]
    columns = ["change", "level", "num_samples", "fid", "kid", "kid_std"]
    return pd.DataFrame(rows)[columns].astype({"fid": float, "kid": float, "kid_std": float})


def _modes(images: Images, seed: int) -> Tensor:
    """(N,) the class of every image; where there are few, its cluster of 8x8 thumbnails, which no network has seen."""
    if images.labels is not None and images.labels.unique().numel() >= MODES:
        return images.labels
    from sklearn.cluster import KMeans

    thumbnails = torch.nn.functional.adaptive_avg_pool2d(images.scaled(), 8).flatten(1).numpy()
    clusters = KMeans(n_clusters=min(MODES, len(images)), n_init=4, random_state=seed).fit_predict(thumbnails)
    return torch.from_numpy(np.asarray(clusters, dtype=np.int64))
