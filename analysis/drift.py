"""Whether the machine held still while a group was timed: which rounds count, and what a reader should be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from analysis.statistics import MIN_ROUNDS
from analysis.text import listing
from harness.runs.store import Run
from harness.runs.titles import flow_title

DRIFT = 0.1
"""Share by which the sentinels of a group may differ before its seconds are doubted."""
FOREIGN = 0.5
"""Processors that others may keep busy, besides those that the run had no threads for."""
WAITED = 0.1
"""Threads of the run's own that may wait for a processor, in the mean of a round."""
MOVED = 0.25
"""Share by which a sentinel may be above its group's fastest before the rounds beside it are left out."""
TICK_S = 0.03
"""Processor seconds that the system's clock, which ticks in hundredths, may be wrong by."""
_PLACES = ("start", "middle", "end")
LEFT_OUT = "noisy"
"""The status, in place of "ok", of rounds that no verdict rests on."""


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
        f"{flow_title(group)}, batch {group['batch_size']}: {'; '.join(words)}. Absolute seconds of this group are "
        "doubtful; ratios are taken within rounds and suffer less."
        for group in groups.to_dict("records")
        if (words := list(_reasons(group["group_id"], drift, sentinels, devices)))
    ]


def _reasons(group: Any, drift: pd.Series, sentinels: pd.DataFrame, devices: pd.DataFrame) -> Iterator[str]:
    if drift.get(group, 0.0) > DRIFT:
        times = sentinels[sentinels["group_id"] == group].set_index("place")["wall_s"]
        places = ", ".join(f"{place} {times[place]:.3g} s" for place in _PLACES if place in times)
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


class Quiet(NamedTuple):
    """Timings in which the rounds that no verdict may rest on are `LEFT_OUT`, and words on each group with such.

    `noisy` names the groups of which fewer than `MIN_ROUNDS` would be left; they keep all, and get no verdict.
    """

    timings: pd.DataFrame
    told: dict[str, str]
    noisy: frozenset[str]

    def sentences(self, cells: pd.DataFrame) -> list[str]:
        """One for each group of these cells that had a noisy round."""
        groups = cells.drop_duplicates("group_id").to_dict("records")
        named = [(f"{flow_title(group)}, batch {group['batch_size']}", group["group_id"]) for group in groups]
        return [f"{name}: {self.told[group]}." for name, group in named if group in self.told]


def quiet_run(run: Run) -> Quiet:
    """The timings of a run, see `quiet_rounds`."""
    return quiet_rounds({name: run.table(name) for name in ("timings", "devices", "sentinels")}, run.manifest)


def quiet_rounds(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> Quiet:
    """Which rounds had the machine to themselves; those of which nothing is stored count.

    A round is noisy where others kept processors busy that it needed, its threads waited for one, another process
    computed on the GPU, the clock was held back, or a sentinel beside it was slow: before the first round and after the
    last one that of a half, in the middle all.
    """
    timings, names = tables["timings"], ["group_id", "session", "round"]
    reasons = _reasons_of_rounds(tables, _spare(manifest))
    marked = timings[names].merge(reasons, on=names, how="left")["reason"].set_axis(timings.index)
    rounds = timings.assign(reason=marked)[timings["status"].eq("ok")].drop_duplicates(names)
    counts, told, noisy = timings["status"].eq("ok") & marked.notna(), dict[str, str](), set[str]()
    for group, found in ((str(name), rows) for name, rows in rounds.groupby("group_id")):
        left = found["reason"].isna().sum()
        if left == len(found):
            continue
        why = listing(sorted({one for text in found["reason"].dropna() for one in text.split("; ")}))
        told[group] = f"{len(found) - left} of {len(found)} rounds were noisy ({why})"
        told[group] += " and are left out" if left >= MIN_ROUNDS else "; too few are left for a verdict on times"
        if left < MIN_ROUNDS:
            noisy.add(group)
    counts &= ~timings["group_id"].isin(noisy)
    return Quiet(timings.assign(status=timings["status"].mask(counts, LEFT_OUT)), told, frozenset(noisy))


def _reasons_of_rounds(tables: Mapping[str, pd.DataFrame], spare: Mapping[str, float]) -> pd.DataFrame:
    """One row per noisy round: group_id, session, round, reason."""
    names = ["group_id", "session", "round"]
    took = tables["timings"].groupby(names, as_index=False)["wall_s"].sum()
    rounds = took.merge(tables["devices"].reindex(columns=[*names, *_TOLD]), on=names, how="left")
    unneeded = pd.Series([spare.get(session, 0.0) for session in rounds["session"]], index=rounds.index, dtype=float)
    busy = rounds["foreign_cpus"].astype(float) - unneeded
    others = busy.gt(FOREIGN + TICK_S / rounds["wall_s"].clip(lower=1e-9))
    others |= rounds["waited_cpus"].astype(float).gt(WAITED)
    drifted = _beside_slow_sentinels(rounds, tables["sentinels"])
    found = {
        "other processes": others | rounds["foreign_processes"].astype(float).gt(0),
        "the clock was held back": rounds["throttled"].eq(True),
        "the machine was slower than before or after": drifted,
    }
    words = [[word for word, where in found.items() if where.iloc[place]] for place in range(len(rounds))]
    reason = pd.Series(["; ".join(one) or None for one in words], index=rounds.index, dtype=object)
    return rounds[names].assign(reason=reason)[reason.notna()]


_TOLD = ("foreign_cpus", "waited_cpus", "foreign_processes", "throttled")


def _beside_slow_sentinels(rounds: pd.DataFrame, sentinels: pd.DataFrame) -> pd.Series:
    good = sentinels[sentinels["status"] == "ok"]
    slow = good[good["wall_s"] > (1 + MOVED) * good.groupby("group_id")["wall_s"].transform("min")]
    at = {place: rounds["group_id"].isin(slow.loc[slow["place"] == place, "group_id"]) for place in _PLACES}
    first = rounds["round"] < (rounds.groupby("group_id")["round"].transform("max") + 1) // 2
    of_these = rounds["session"].isin(sentinels["session"])
    return of_these & (at["middle"] | (at["start"] & first) | (at["end"] & ~first))


def _spare(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Processors that a session had no threads for; others may use them."""
    facts = {name: one.get("environment") for name, one in (manifest.get("sessions") or {}).items()}
    return {
        name: min(max(found["logical_cores"] - found["threads"], 0), 10_000)
        for name, found in facts.items()
        if isinstance(found, dict) and all(isinstance(found.get(one), int) for one in ("logical_cores", "threads"))
    }
