"""What a cell is called in every message and table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def parsed(options: object) -> dict[str, Any]:
    """The options of a cell, stored as JSON; none where they are not that."""
    try:
        found = json.loads(options) if isinstance(options, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def flow_title(row: Mapping[Any, Any]) -> str:
    """A flow's name, or the dataset where it has none: a file's, and random weights.

    >>> flow_title({"dataset": "cifar10-jpeg", "checkpoint": "cifar10"})
    'cifar10'
    >>> flow_title({"dataset": "cifar10", "checkpoint": "random:2-256-6-6@32"})
    'cifar10'
    """
    checkpoint = row["checkpoint"]
    named = isinstance(checkpoint, str) and ":" not in checkpoint and not PurePath(checkpoint).suffix
    return str(checkpoint if named else row["dataset"])


def title(label: str, tau: float | None, options: object = None) -> str:
    """A decoder's label, and tau where it takes one (None and NaN: it takes none), or the budget that it goes by.

    `options` are the cell's, as JSON.

    >>> title("sejd", 0.5), title("sequential", None), title("sequential", float("nan"))
    ('sejd tau 0.5', 'sequential', 'sequential')
    >>> title("auto", None, '{"budget": null}'), title("auto budget=0.01", None, '{"budget": 0.01}')
    ('auto, budget sejd', 'auto budget=0.01')
    """
    known = parsed(options)
    if "budget" in known:
        budget = "sejd" if known["budget"] is None else known["budget"]
        return label if "budget" in label else f"{label}, budget {budget}"
    return label if tau is None or tau != tau else f"{label} tau {tau:g}"
