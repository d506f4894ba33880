"""Numbers, lists and tables as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

DASH = "–"


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


def markdown(frame: pd.DataFrame, headings: Mapping[str, str] | None = None, shares: Collection[str] = ()) -> str:
    """A frame as a Markdown table: the columns of `headings`, by default all of them; `shares` are told in per cent.

    >>> print(markdown(pd.DataFrame({"tau": [0.5], "rise": [0.0412]}), {"tau": "tau", "rise": "rise"}, ["rise"]))
    | tau | rise |
    |---|---|
    | 0.5 | 4.1 % |
    """
    frame = frame.assign(**{name: [percent(share, 1) for share in frame[name]] for name in shares})
    return markdown_table(rows_of(as_text(frame, headings)))


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the headings first, as a Markdown table.

    >>> print(markdown_table([["decoder"], ["a|b"]]))
    | decoder |
    |---|
    | a\\|b |
    """
    head, *body = ("|" + "|".join(map(_padded, line)) + "|" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def _padded(cell: str) -> str:
    return f" {' '.join(cell.replace('|', chr(92) + '|').splitlines())} " if cell else " "


def speedup(value: float, low: float, high: float) -> str:
    """A speed-up with its interval, where there is one.

    >>> speedup(2.5, 2.25, 2.75), speedup(2.5, float("nan"), float("nan"))
    ('2.50x [2.25, 2.75]', '2.50x')
    """
    return f"{value:.2f}x" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")


def duration(seconds: float) -> str:
    """Seconds as text, in the unit that suits.

    >>> duration(0.0123), duration(47.8), duration(600), duration(9000)
    ('0.012 s', '48 s', '10 min', '2.5 h')
    """
    unit, size = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"{quantity(seconds / size, 2)} {unit}"


def percent(share: float, digits: int = 0) -> str:
    """A share as text.

    >>> percent(0.052), percent(float("nan"))
    ('5 %', '–')
    """
    return DASH if pd.isna(share) else f"{100 * share:.{digits}f} %"
