"""Published figures, set beside ours as a reference: other flows, other hardware, never mixed into a result.

They are the paper's own, and of the key `language-models` those of others, by their source.

"Accelerating Inference of Discrete Autoregressive Normalizing Flows by Selective Jacobi Decoding",
arXiv 2505.24791, TMLR 2026. tau = 0.5, batch 256 over two L40S GPUs, FID against the whole training set.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import pandas as pd

CITATION = "arXiv 2505.24791 (TMLR 2026): tau = 0.5, batch 256 over two L40S GPUs, its own flows"


@cache
def published() -> pd.DataFrame:
    """Every published figure: quantity, key (of the dataset), name (as printed), decoder, layer, value, source."""
    with (files("analysis") / "published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"layer": "Int64"})


def reference(quantity: str, dataset: str) -> pd.DataFrame:
    """The published rows of one quantity for a dataset or a variant of it (``cifar10-jpeg`` is one of ``cifar10``).

    >>> reference("speedup", "cifar10-jpeg")["value"].tolist()
    [2.4, 3.6]
    >>> reference("speedup", "digits").empty
    True
    """
    rows = published()
    same = rows["key"].map(lambda key: dataset == key or dataset.startswith(f"{key}-"))
    return rows[same & (rows["quantity"] == quantity)]
