"""What a figure is here: a data frame, a way to draw it, and a sentence computed from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.load import Runs

DASH = "–"


class Omitted(Exception):
    """A figure that these runs cannot show; the message is the reason, and the page prints it."""


@dataclass(frozen=True)
class Plot:
    """A figure family.

    Args:
        name: file stem.
        title: heading on the page.
        reading: how to read it: axes, marks, what was done to the numbers.
        data: exactly what is drawn, written beside the figure as CSV; raises `Omitted`.
        draw: the figure of one such frame.
        finding: a sentence that says what the frame shows.
        split: column by whose values the figure is repeated; None for one figure.
    """

    name: str
    title: str
    reading: str
    data: Callable[[Runs], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]
    finding: Callable[[pd.DataFrame], str]
    split: str | None = "flow"


@dataclass(frozen=True)
class Table:
    """A table of the page: like a `Plot` that is not drawn.

    Args:
        name, title, reading, data, finding: as of a `Plot`.
        headings: column of the frame to heading, for a table whose CSV says more than its readers need; by default
            all columns under their names.
        formats: file suffix to what writes the frame in that format, besides CSV.
    """

    name: str
    title: str
    reading: str
    data: Callable[[Runs], pd.DataFrame]
    finding: Callable[[pd.DataFrame], str]
    headings: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, Callable[[pd.DataFrame], str]] = field(default_factory=dict)


def require(frame: pd.DataFrame, reason: str) -> pd.DataFrame:
    """The frame itself.

    Raises:
        Omitted: it has no rows.
    """
    if frame.empty:
        raise Omitted(reason)
    return frame


def data_columns(frame: pd.DataFrame) -> list[str]:
    """The columns to be written; those that begin with "_" only say where something lies."""
    return [str(column) for column in frame if not str(column).startswith("_")]


def as_text(frame: pd.DataFrame, headings: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A frame as text under its headings, by default its columns; what is not known is a dash."""
    text = pd.DataFrame(index=frame.index)
    for column, heading in (headings or {str(name): str(name).replace("_", " ") for name in frame}).items():
        values = frame[column]
        real = pd.api.types.is_float_dtype(values)
        text[heading] = [DASH if pd.isna(value) else quantity(value) if real else str(value) for value in values]
    return text


def rows_of(text: pd.DataFrame) -> list[list[str]]:
    """A frame of text as lists, its headings first."""
    return [[str(name) for name in text], *text.to_numpy().tolist()]


def highest(frame: pd.DataFrame, column: str) -> dict[str, Any]:
    """The row with the largest number in a column, the first of equals; NaNs do not count."""
    return frame.to_dict("records")[int(np.nanargmax(frame[column].to_numpy(dtype=float)))]  # type: ignore[return-value]


def lowest(frame: pd.DataFrame, column: str) -> dict[str, Any]:
    """The row with the smallest number in a column, the first of equals; NaNs do not count."""
    return frame.to_dict("records")[int(np.nanargmin(frame[column].to_numpy(dtype=float)))]  # type: ignore[return-value]


def quantity(value: float, digits: int = 3) -> str:
    """A number for a sentence: `digits` significant ones, no exponent unless it is needed.

    >>> quantity(3.14159), quantity(12345.6), quantity(0.0000123), quantity(float("nan"))
    ('3.14', '12,346', '1.23e-05', 'not measured')
    """
    if pd.isna(value):
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def times(value: float) -> str:
    """A speed-up: two digits after the point below 10, one below 100."""
    if pd.isna(value):
        return "not measured"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}×"


def listing(names: list[str]) -> str:
    """Names as an English list.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
