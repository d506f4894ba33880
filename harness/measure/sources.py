"""What a dataset table of a matrix stands for: a checkpoint, or that it is not there, and how it is sampled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from harness.datasets import datasets
from harness.errors import CheckpointError, HarnessError
from harness.files import shown
from harness.flows.checkpoints import checkpoint_path, digest, read_metadata, training_noise, unwrapped
from harness.flows.protocols import Guidance
from harness.flows.published import SUFFIXES, Published, folders, published, published_as
from harness.measure.matrix import DatasetTable, Grid, Matrix, load_matrix

TABLE_1 = "paper-table1"
"""The matrix that a checkpoint without one is measured by."""


@dataclass(frozen=True)
class Source:
    """The checkpoint of a dataset."""

    name: str
    path: Path | None  # the file, or None where an optional one is not there
    digest: str  # SHA-256 of the file; of one that is not there, what was asked for
    known: Published | None  # what it is published as
    absent: str | None = None  # why it is not there


def source_of(dataset: DatasetTable, data_root: str | None = None) -> Source:
    """The checkpoint that a dataset table names. Raises CheckpointError: it is not there and not optional."""
    asked = dataset.checkpoint or dataset.name
    known = published().get(asked)
    try:
        path = checkpoint_path(asked, dataset.root or data_root)
    except CheckpointError as error:
        if not dataset.optional:
            raise
        *_, last = folders(dataset.root or data_root)
        mine = f"there is no flow '{asked}'; train one and put it at '{shown(last / asked)}.safetensors'"
        return Source(asked, None, f"absent:{asked}", known, str(error) if known or "/" in asked else mine)
    name = path.stem if dataset.checkpoint is None or "/" not in dataset.checkpoint else path.name
    alone = unwrapped(path, dataset.weights)
    return Source(known.name if known else name, alone, digest(alone), known or published_as(path))


def settings_of(dataset: DatasetTable, source: Source, grid: Grid) -> list[tuple[str | None, float | None]]:
    """Every pair of guidance, as JSON, and noise of the denoising step that a dataset is measured with, once each.

    Raises HarnessError: settings of a publication that is not known, or training noise that the checkpoint does not
    tell.
    """
    if dataset.published and source.known is None:
        raise HarnessError(
            f"checkpoint '{source.name}' is none of those published: {', '.join(published())}; state its settings"
        )
    known = source.known if dataset.published else None
    guidances = [_as_json(Guidance(**table.model_dump())) for table in dataset.guidance or grid.guidance]
    denoises = [_noise(value, source) for value in dataset.denoise or grid.denoise]
    if known is not None and dataset.guidance is None:
        guidances = [_as_json(known.guidance)]
    if known is not None and dataset.denoise is None:
        # The step is proportional to the square of the noise, so m times it is the step for sqrt(m) times the noise.
        denoises = [None if known.denoise is None else known.sigma * math.sqrt(known.denoise)]
    return list(dict.fromkeys(product(guidances, denoises)))


def _as_json(guidance: Guidance | None) -> str | None:
    return None if guidance is None or not guidance.scale else json.dumps(asdict(guidance), sort_keys=True)


def _noise(value: bool | float, source: Source) -> float | None:
    if value is False:
        return None
    if value is not True:
        return float(value)
    if source.path is None:
        return source.known.sigma if source.known else None
    return training_noise(source.path)


def matrix_of(
    name: str,
    profile: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    weights: str | None = None,
) -> Matrix:
    """A matrix by name or file; for a checkpoint's file or published name, the paper's Table 1 of that flow alone.

    A published checkpoint is sampled as its publishers did; `weights` are which ones of it, see `load_flow`. Raises
    HarnessError: as `load_matrix`; a `dataset` or `weights` for a matrix, which names its own, or a dataset not known.
    """
    if Path(name).suffix not in SUFFIXES and name not in published():
        if dataset is not None:
            raise HarnessError(f"--dataset says what a checkpoint was trained on; the matrix '{name}' names its own")
        if weights is not None:
            raise HarnessError("--weights is for a checkpoint; a matrix says weights = 'KEY' in a [[datasets]] table")
        return load_matrix(name, profile, overrides)
    table = table_of(name, dataset, weights)
    known = published().get(name) or published_as(name)
    stem = Path(name).stem if known is None or name != known.name else name
    return load_matrix(TABLE_1, profile, {**(overrides or {}), "name": stem, "datasets": [table]})


def table_of(checkpoint: str, dataset: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """The dataset table of a checkpoint by itself, a published one as its publishers sampled it.

    Raises HarnessError: a dataset that is not known.

    Args:
        dataset: that it was trained on; by default what is published, what the file says, or how its name begins.
    """
    if dataset is not None:
        datasets.get(dataset)
    known = published().get(checkpoint) or published_as(checkpoint)
    if dataset is None and known is None:
        path = unwrapped(checkpoint_path(checkpoint), weights)
        dataset = read_metadata(path).get("dataset", path.stem.partition("_model_")[0])
    name = dataset or (known and known.dataset)
    return {"name": name, "checkpoint": checkpoint, "weights": weights, "published": known is not None}
