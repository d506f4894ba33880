"""Whether the tables made again are the stored ones: to the last digit, or up to the rounding of another processor.

Deterministic means: on one kind of processor every digit is repeated. Another kind adds up a product of matrices in
another order, and float32's rounding (6e-8) has grown a few hundredfold when it reaches a figure. Counts do not round.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.text import listing
from harness.runs.store import Run

TIMED, ROUNDED = "-timed.csv", "-rounding.csv"
OF_ITSELF, OF_COLUMN, FLOAT32 = 1e-4, 1e-5, 1e-7
"""What rounding may change a number by: a share of itself, of the largest number of its column, or float32's own share
of the tokens and images that an error is one of."""
RISE = "_rise"
"""In the names of columns that tell a change as a share of what changed: they are rounded as 1 + the change is."""

TOOK = f"took{TIMED}"
"""How long a study was measured, with its profile."""
PROVENANCE, DIGITS = f"provenance{TIMED}", 8
"""The table of `provenance` beside a study's; of a digest so many are told. Code changes where no number does."""

_NAMED = {"flow", "checkpoint"}
"""Columns that tell flows apart."""
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Comparison:
    """What became of the stored tables."""

    differing: tuple[str, ...] = ()  # a sentence for each that is another one
    rounded: tuple[str, ...] = ()  # names of those that are the same up to rounding
    kept: tuple[str, ...] = ()  # a sentence for each study that was not stored again: it rests on a flow not here

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(self.differing + other.differing, self.rounded + other.rounded, self.kept + other.kept)


def store_took(folder: Path, profile: str, runs: Sequence[Run]) -> None:
    """Store how long the runs of a study took, where all of them tell."""
    seconds = [float(run.manifest["seconds"]) for run in runs if "seconds" in run.manifest]
    if folder.is_dir() and len(seconds) == len(runs) > 0:
        pd.DataFrame([{"profile": profile, "seconds": round(sum(seconds), 1)}]).to_csv(folder / TOOK, index=False)


def took(study: str, results: Sequence[Path]) -> tuple[str, float] | None:
    """Profile and seconds of a study, from the first of some folders that stores them."""
    for folder in results:
        if (file := folder / study / TOOK).is_file():
            row = pd.read_csv(file).iloc[0]
            return str(row["profile"]), float(row["seconds"])
    return None


def rests_on(stored: Path, flows: Collection[str]) -> list[str]:
    """Those of some flows that a stored CSV has rows of."""
    tables = [_text(path) for path in sorted(stored.glob("*.csv"))]
    return [flow for flow in flows if any(len(_without(table, [flow])) < len(table) for table in tables)]


def provenance(runs: Sequence[Run]) -> pd.DataFrame:
    """Which code measured which checkpoint in some runs: checkpoint, checkpoint_digest, code_version, each row once."""
    columns = ["checkpoint", "checkpoint_digest", "code_version"]
    found = [run.table(name).reindex(columns=columns) for run in runs for name in ("cells", "probes")]
    rows = pd.concat(found, ignore_index=True).dropna()
    return rows.drop_duplicates().sort_values(columns, ignore_index=True)


def origin(found: pd.DataFrame) -> str:
    """A sentence that names the code and the checkpoints of `provenance` by the first digits of their digests."""
    code = sorted({str(version)[:DIGITS] for version in found["code_version"]})
    flows = found[["checkpoint", "checkpoint_digest"]].drop_duplicates().itertuples(index=False)
    named = listing([f"`{name}` ({str(digest)[:DIGITS]})" for name, digest in flows])
    return f"Measured by code {listing([f'`{one}`' for one in code])} from the checkpoints {named}."


def compare(new: Path, stored: Path, absent: Collection[str] = ()) -> Comparison:
    """The deterministic CSVs of two folders; those of clocks (`TIMED`) are left out.

    Of flows that are `absent` from the new ones the stored rows are left out too, and so are tables that do not tell
    flows apart.
    """
    names = {path.name for folder in (new, stored) for path in folder.glob("*.csv") if not path.name.endswith(TIMED)}
    return sum((_compare(new / name, stored / name, absent) for name in sorted(names)), Comparison())


def _text(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def _without(table: pd.DataFrame, flows: Collection[str]) -> pd.DataFrame:
    """The rows of other flows: those whose `flow` or `checkpoint` is none of these, alone or as in "NAME, batch 4"."""
    for column in _NAMED & {*table}:
        table = table[[{*flows}.isdisjoint(cell.split(", ")) for cell in table[column]]]
    return table


def _compare(new: Path, stored: Path, absent: Collection[str]) -> Comparison:
    if not stored.is_file():
        return Comparison((f"'{stored}' is not stored yet; the new one is '{new}'",))
    before = _text(stored)
    if absent and (_NAMED.isdisjoint(before) or (len(before) and _without(before, absent).empty)):
        return Comparison()
    if not new.is_file():
        return Comparison((f"'{stored}' was not made again",))
    if new.read_bytes() == stored.read_bytes():
        return Comparison()
    before, after = (_without(table, absent).reset_index(drop=True) for table in (before, _text(new)))
    if list(before) != list(after) or len(before) != len(after):
        return Comparison((f"'{stored}' has other columns or rows than '{new}'",))
    names = map(str, before)
    others = [name for name in names if not same_up_to_rounding(before[name], after[name], RISE in name)]
    if others and not stored.name.endswith(ROUNDED):
        return Comparison((f"'{stored}' differs from '{new}' in {listing(others)}",))
    return Comparison(rounded=(f"{stored.parent.name}/{stored.name}",))


def same_up_to_rounding(before: pd.Series, after: pd.Series, rises: bool = False) -> bool:
    """Whether two columns of text hold the same, whole numbers exactly and others, or `RISE`, up to rounding.

    >>> column = lambda *cells: pd.Series(cells, dtype=str)
    >>> same_up_to_rounding(column("0.25", ""), column("0.250001", "")), same_up_to_rounding(column("7"), column("8"))
    (True, False)
    >>> same_up_to_rounding(column("0.053 in 6 of 9"), column("0.054 in 6 of 9"))
    True
    """
    if before.equals(after):
        return True
    if (before.eq("") != after.eq("")).any():
        return False
    numbers = [pd.to_numeric(column.mask(column.eq("")), errors="coerce") for column in (before, after)]
    if any((column.isna() != before.eq("")).any() for column in numbers):
        return all(_same_sentence(*pair) for pair in zip(before, after, strict=True))
    old, new = (column.dropna().to_numpy(float) for column in numbers)
    if (old == np.round(old)).all() and (new == np.round(new)).all():
        return bool((old == new).all())
    if rises:
        old, new = 1 + old, 1 + new
    largest = np.abs(old[np.isfinite(old)]).max(initial=0.0)
    return bool(np.isclose(new, old, rtol=OF_ITSELF, atol=max(OF_COLUMN * largest, FLOAT32)).all())


def _same_sentence(before: str, after: str) -> bool:
    if _NUMBER.split(before) != _NUMBER.split(after):
        return False
    pairs = zip(_NUMBER.findall(before), _NUMBER.findall(after), strict=True)
    return all(old == new or _same_number(old, new) for old, new in pairs)


def _same_number(before: str, after: str) -> bool:
    if before.isdigit() or after.isdigit():
        return False
    old, new = (float(text.replace(",", "")) for text in (before, after))
    return abs(new - old) <= 1.01 * max(_last_place(before), _last_place(after))


def _last_place(text: str) -> float:
    """The unit of the last digit of a number.

    >>> _last_place("0.053"), _last_place("1.23e-05")
    (0.001, 1e-07)
    """
    mantissa, _, exponent = text.replace(",", "").partition("e")
    return float(f"1e{int(exponent or 0) - len(mantissa.partition('.')[2])}")
