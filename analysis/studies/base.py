"""What a study's module hands to its text: tables, figures, values, and what it found of each claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure

Verdict = bool | Literal["undecided"] | None
"""Whether a finding bears a claim out, or answers a question; None where it cannot be measured."""


@dataclass(frozen=True)
class Finding:
    """What was measured of one claim on one flow: a part of a row of the claim table.

    "undecided": it was measured, on too little for 95 % confidence either way.
    """

    claim: str  # its key in ``claims.toml``
    flow: str  # what it was measured on, or why nothing could be, such as ``"none"``
    measured: str  # one sentence; its numbers come from the tables
    agrees: Verdict
    criterion: str  # when we say so, or why it cannot be measured
    timed: bool = False  # whether it rests on wall times or measured memory, which no rerun repeats


@dataclass(frozen=True)
class Findings:
    """What a study's ``findings(runs)`` returns.

    `tables` are deterministic: a rerun on the same kind of processor repeats every digit, on another kind up to
    rounding. The text draws on them as ``tables.NAME``, and ``harness study --check`` compares them with the stored.
    `rounded` holds what rounding alone decides, such as when a last bit settles; `timed` wall times or measured memory.
    They are written as ``NAME.csv``, ``NAME-rounding.csv`` and ``NAME-timed.csv``, `figures` as ``NAME.png``.
    """

    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    rounded: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    timed: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[Finding, ...] = ()
