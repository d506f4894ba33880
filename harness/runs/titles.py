"""What a cell is called in every message and table."""

from __future__ import annotations


def title(label: str, tau: float | None) -> str:
    """A decoder's label, and tau where it takes one (None and NaN: it takes none).

    >>> title("sejd", 0.5), title("sequential", None), title("sequential", float("nan"))
    ('sejd tau 0.5', 'sequential', 'sequential')
    """
    return label if tau is None or tau != tau else f"{label} tau {tau:g}"
