"""What a study's module hands to its text: tables, figures, values, and what it found of each claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Finding:
    """What was measured of one claim on one flow: a part of a row of the claim table.

    Args:
        claim: its key in ``claims.toml``.
        flow: what it was measured on, or why nothing could be, such as ``"none"``.
        measured: one sentence; its numbers come from the tables.
        agrees: whether the measurement bears the claim out by `criterion`; None where it cannot be measured
            here. Of an open question: whether the measurement answers it.
        criterion: when we say so, or why it cannot be measured.
        timed: whether the sentence or the verdict rests on wall times or measured memory, which no rerun repeats.
    """

    claim: str
    flow: str
    measured: str
    agrees: bool | None
    criterion: str
    timed: bool = False


@dataclass(frozen=True)
class Findings:
    """What a study's ``findings(runs)`` returns.

    Args:
        tables: name to frame, deterministic: a rerun on the same kind of processor repeats every digit, one on another
            kind does up to rounding. Written as ``NAME.csv``, drawn on by the text as ``tables.NAME``, and compared
            with the stored ones by ``harness study --check``.
        rounded: name to frame that holds what rounding alone decides, such as when a last bit settles: repeated on the
            same kind of processor only; written as ``NAME-rounding.csv``.
        timed: name to frame that holds wall times or measured memory; written as ``NAME-timed.csv``.
        figures: name to figure, written as ``NAME.png``; drawn inside `analysis.figures.style.theme`.
        values: further values for the template, computed from the frames.
        claims: what was found of the claims that this study answers.
    """

    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    rounded: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    timed: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[Finding, ...] = ()
