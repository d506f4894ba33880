"""What samples are compared with, by content: a run never mixes two sets of real images, or two feature networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.datasets import dataset_fingerprint
from harness.errors import HarnessError, StoreError
from harness.measure.cells import content_hash
from harness.measure.matrix import Matrix
from harness.metrics.features import feature_extractor

Reference = dict[str, str | None]
"""``images``: fingerprint of the train split; ``features``: digest of the network; None for what is not at hand."""


def reference_name(dataset: str, root: str | None) -> str:
    """What a manifest calls the real images of a dataset table."""
    return dataset if root is None else f"{dataset} in {root}"


def references(
    matrix: Matrix, data_root: str | None = None, inception_weights: str | None = None, skip_corrupt: bool = False
) -> dict[str, Reference]:
    """What the samples of each dataset of a matrix would be compared with now; nothing without quality."""
    if not matrix.quality.enabled:
        return {}
    return {
        reference_name(table.name, table.root): {
            "images": _if_there(
                dataset_fingerprint, table.name, "train", root=table.root or data_root, skip_corrupt=skip_corrupt
            ),
            "features": _if_there(
                lambda name, root: feature_extractor(name, inception_weights, root=root).digest,
                table.name,
                root=table.root or data_root,
            ),
        }
        for table in matrix.datasets
    }


def reference_digest(reference: Mapping[str, str | None] | None) -> str | None:
    """One digest of a reference: a part of a cell's identity, and of every quality row."""
    if reference is None or reference["features"] is None:
        return None
    return content_hash(dict(reference))


def latest(path: Path, seen: Mapping[str, Any], now: Mapping[str, Reference]) -> dict[str, Reference]:
    """What a run has seen of each reference so far, `now` included.

    Images that were not there when it was started may have come since, and some may be gone: rows say what they were
    compared with. Others in place of those that were there are refused. Raises StoreError: other images, or another
    feature network.
    """
    for name, reference in now.items():
        for part, what in (("images", "real images"), ("features", "feature network")):
            there = seen.get(name, {}).get(part)
            if there and reference[part] and there != reference[part]:
                raise StoreError(
                    f"'{path}' was measured with other {what} of '{name}', so its FIDs would not compare; give those "
                    "it was started with, or another --out"
                )
    return {
        name: {part: value or seen.get(name, {}).get(part) for part, value in reference.items()}
        for name, reference in now.items()
    }


def _if_there(find: Callable[..., str], *arguments: Any, **options: Any) -> str | None:
    try:
        return find(*arguments, **options)
    except HarnessError:  # what is missing is told in the rows
        return None
