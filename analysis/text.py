"""Numbers, lists and tables as text; names of any characters are escaped here, once for each format."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence

import pandas as pd
from rich.box import HEAVY_HEAD, Box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.runs.titles import flow_title

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


def flow_titles(rows: pd.DataFrame) -> pd.Series:
    """What the flow of each row is called, see `flow_title`; `rows` have its dataset and checkpoint."""
    titles = [flow_title(row) for row in rows[["dataset", "checkpoint"]].to_dict("records")]
    return pd.Series(titles, index=rows.index, dtype=object)


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
    return markdown_table([[markdown_text(cell) for cell in row] for row in rows_of(as_text(frame, headings))])


_MARKDOWN = re.compile(r"[\\`*~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[])|(?<=!)\[")


def markdown_text(text: str) -> str:
    """Text as Markdown shows it: nothing in it is markup, a formula, HTML or an entity.

    >>> print(markdown_text("a*b <i> $x$ [1, 2] one_word"))
    a\\*b &lt;i> \\$x\\$ [1, 2] one_word
    """
    text = re.sub(r"&(?=#?\w+;)", "&amp;", _MARKDOWN.sub(r"\\\g<0>", text))
    return text.replace("<", "&lt;")


_LATEX = {
    **{character: f"\\{character}" for character in "%_&#${}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "-": "-{}"},
    **{"×": r"$\times$", "±": r"$\pm$", "–": "--", "−": "$-$", "[": "{[}", "*": "{*}"},
}


def latex_text(text: str) -> str:
    """Text as LaTeX sets it, letter by letter: no command, formula, dash of hyphens or argument of the line before.

    >>> print(latex_text("50% of a_b^2"))
    50\\% of a\\_b\\textasciicircum{}2
    """
    line = " ".join(text.split())
    return re.sub(r"^[\[*]|-(?=-)|[^\w\s.,;:!?()\[\]*+=/@'-]|_", lambda found: _LATEX.get(found[0], found[0]), line)


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


def speedup(value: float, low: float, high: float, coverage: float = 0.95) -> str:
    """A speed-up with its interval, where there is one; one that covers less often than 95 % says so.

    >>> speedup(2.5, 2.25, 2.75), speedup(2.5, 2.25, 2.75, 0.9375), speedup(2.5, float("nan"), float("nan"))
    ('2.50x [2.25, 2.75]', '2.50x [2.25, 2.75; 93.8 %]', '2.50x')
    """
    return f"{value:.2f}x" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}{short_of(coverage)}]")


def times_to(low: float, high: float, coverage: float) -> str:
    """The interval of a factor; one that covers less often than 95 % says so.

    >>> times_to(1.5, 2.0, 0.9375)
    '1.50× to 2.00×; 93.8 %'
    """
    return f"{times(low)} to {times(high)}{short_of(coverage)}"


def short_of(coverage: float) -> str:
    """How often an interval covers, where that is less than the 95 % that are meant."""
    return f"; {percent(coverage, 1)}" if coverage < 0.95 else ""


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


FOLDED = 40
"""Columns below which a folded cell is no longer readable."""


def room(otherwise: int) -> int | None:
    """Columns to write for: None for the terminal's own, or $COLUMNS; `otherwise` in a pipe or file."""
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else otherwise


def print_table(
    console: Console,
    rows: Sequence[Mapping[str, str]],
    *,
    title: str = "",
    right: Collection[str] = (),
    dropped: Sequence[str] = (),
    folded: str | None = None,
    bold: Collection[int] = (),
    box: Box | None = HEAVY_HEAD,
) -> None:
    """Print rows by heading as a table none of whose cells is cut.

    Where there is no room the headings in `dropped` go, the first one first, and that is said; where even that is not
    enough every row becomes a block of lines, its first cell on top. `folded` names a column that may take several
    lines, `right` those aligned so, `bold` the numbers of rows to stand out.
    """
    widths = {name: max(cell_len(text) for text in (name, *(row[name] for row in rows))) for name in rows[0]}
    widths |= {} if folded is None else {folded: min(FOLDED, widths[folded])}
    shown, hidden = list(widths), []
    for name in dropped:
        if sum(widths[one] + 3 for one in shown) + 1 > console.width:
            shown.remove(name)
            hidden.append(name)
    if sum(widths[one] + 3 for one in shown) + 1 > console.width:
        console.print(Text(title, "bold"))
        for number, row in enumerate(rows):
            first, *others = row.items()
            console.print(Text(first[1], "bold" if number in bold else ""))
            facts = ", ".join(f"{name} {value}".strip() for name, value in others if value)
            console.print(Padding(Text(facts), (0, 0, 0, 4)))
        return
    table = Table(title=Text(title) if title else None, title_justify="left", title_style="bold", box=box)
    for name in shown:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name != folded)
    for number, row in enumerate(rows):
        table.add_row(*(Text(row[name]) for name in shown), style="bold" if number in bold else None)
    console.print(table)
    if hidden:
        console.print(f"No room for {listing(hidden)} in {console.width} columns.", style="dim", highlight=False)
