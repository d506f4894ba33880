"""Whether the machine held still while a group was timed: what a summary or report should say of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

DRIFT = 0.1
"""Share by which the sentinels of a group may differ before its seconds are doubted."""
FOREIGN = 0.5
"""Processors that others may keep busy, in the median round, before it is told."""


def sentinel_drift(sentinels: pd.DataFrame) -> pd.Series:
    """Per group, the longest sentinel over the shortest, less 1; groups with fewer than two are left out.

    >>> rows = {"group_id": ["a", "a", "b"], "status": ["ok"] * 3, "wall_s": [1.0, 1.25, 1.0]}
    >>> sentinel_drift(pd.DataFrame(rows)).to_dict()
    {'a': 0.25}
    """
    times = sentinels[sentinels["status"] == "ok"].groupby("group_id")["wall_s"]
    drift = times.max() / times.min() - 1
    return drift[times.size() > 1].rename("drift")


def doubts(cells: pd.DataFrame, sentinels: pd.DataFrame, devices: pd.DataFrame) -> list[str]:
    """A sentence for each group of these cells whose machine did not hold still, by the tables of these names."""
    drift = sentinel_drift(sentinels)
    groups = cells.drop_duplicates("group_id")
    return [
        f"{group['dataset']}, batch {group['batch_size']}: {'; '.join(words)}. Absolute seconds of this group are "
        "doubtful; ratios are taken within rounds and suffer less."
        for group in groups.to_dict("records")
        if (words := list(_reasons(group["group_id"], drift, sentinels, devices)))
    ]


def _reasons(group: Any, drift: pd.Series, sentinels: pd.DataFrame, devices: pd.DataFrame) -> Iterator[str]:
    if drift.get(group, 0.0) > DRIFT:
        times = sentinels[sentinels["group_id"] == group].set_index("place")["wall_s"]
        places = ", ".join(f"{place} {times[place]:.3g} s" for place in ("start", "middle", "end") if place in times)
        yield f"the sentinel, the baseline timed besides the rounds, drifted by {drift[group]:.0%} ({places})"
    rounds = devices[devices["group_id"] == group]
    throttled = rounds[rounds["throttled"].eq(True)]
    if len(throttled):
        reasons = sorted({reason for text in throttled["throttle_reasons"].dropna() for reason in text.split(",")})
        yield f"the clock was held back in {len(throttled)} of {len(rounds)} rounds ({', '.join(reasons)})"
    if len(rounds) and rounds["foreign_cpus"].median() > FOREIGN:
        yield f"other processes kept {rounds['foreign_cpus'].median():.1f} processors busy"
    if rounds["foreign_processes"].gt(0).any():
        yield "other processes computed on the GPU"
