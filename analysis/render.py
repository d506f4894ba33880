"""From a plot to files and page elements: CSV, PNG and others on request, and SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from analysis.load import Runs
from analysis.plot import Omitted, Plot, Table, as_text, data_columns, rows_of
from analysis.style import INK, PAPER, theme

FORMATS = ("png", "svg", "pdf")
FORMAT_NAMES = {"md": "Markdown", "tex": "LaTeX"}
MOST_ROWS = 80
"""Frames of more rows are on the page as CSV only."""


@dataclass(frozen=True)
class Panel:
    """One rendered figure of a family.

    Args:
        heading: the value it was split by, or empty.
        finding: the sentence.
        svg: inline element.
        width: inches, for the least width at which it stays legible.
        files: label to name below the folder of figures.
        numbers: what is drawn, where it is short enough to read.
    """

    heading: str
    finding: str
    svg: str
    width: float
    files: dict[str, str]
    numbers: Grid | None = None


@dataclass(frozen=True)
class Section:
    """A figure family as rendered, or the reason why it was left out."""

    name: str
    title: str
    reading: str
    panels: list[Panel] = field(default_factory=list)
    omitted: str | None = None


@dataclass(frozen=True)
class Grid:
    """A table as text: headings and rows of as many cells."""

    headings: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class TableSection:
    """A table as rendered, or the reason why it was left out."""

    name: str
    title: str
    reading: str
    grid: Grid | None = None
    finding: str = ""
    files: dict[str, str] = field(default_factory=dict)
    omitted: str | None = None


def render(plot: Plot, runs: Runs, folder: Path, formats: tuple[str, ...]) -> Section:
    """Draw a family into `folder`; what these runs cannot show becomes the section's reason.

    A defect in a figure must not cost the reader the others: it is printed on stderr and named on the page.
    """
    try:
        frame = plot.data(runs)
        panels = [_panel(plot, heading, part, name, folder, formats) for heading, name, part in _split(plot, frame)]
    except Omitted as reason:
        return Section(plot.name, plot.title, plot.reading, omitted=f"{reason}.")
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return Section(plot.name, plot.title, plot.reading, omitted=defect(error))
    return Section(plot.name, plot.title, plot.reading, panels)


def render_table(table: Table, runs: Runs, folder: Path) -> TableSection:
    """Write a table's files into `folder`, and prepare it for the page; see `render`."""
    try:
        frame = table.data(runs)
        text = as_text(frame, table.headings)
        files = {"CSV": write_csv(frame, folder / f"{table.name}.csv")}
        for kind, write in table.formats.items():
            path = folder / f"{table.name}.{kind}"
            path.write_text(write(frame), encoding="utf-8")
            files[FORMAT_NAMES.get(kind, kind)] = path.name
        grid = Grid(*_headed(text))
        return TableSection(table.name, table.title, table.reading, grid, table.finding(frame), files)
    except Omitted as reason:
        return TableSection(table.name, table.title, table.reading, omitted=f"{reason}.")
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return TableSection(table.name, table.title, table.reading, omitted=defect(error))


def _headed(text: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    head, *body = rows_of(text)
    return head, body


def defect(error: Exception) -> str:
    """What the page says of a figure that could not be drawn for a reason nobody foresaw."""
    return f"This figure could not be drawn ({type(error).__name__}: {error}). That is a defect; please report it."


def _split(plot: Plot, frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    if plot.split is None:
        yield "", plot.name, frame
        return
    values = list(dict.fromkeys(frame[plot.split]))
    for value in values:
        name = plot.name if len(values) == 1 else f"{plot.name}-{slug(str(value))}"
        yield "" if len(values) == 1 else str(value), name, frame[frame[plot.split] == value].reset_index(drop=True)


def _panel(plot: Plot, heading: str, frame: pd.DataFrame, name: str, folder: Path, formats: tuple[str, ...]) -> Panel:
    drawn = plot.draw(frame)
    settle(drawn)
    files = {"CSV": write_csv(frame, folder / f"{name}.csv")}
    for kind in formats:
        path = folder / f"{name}.{kind}"
        save(drawn, path, name)
        files[kind.upper()] = path.name
    text = as_text(frame[data_columns(frame)])
    numbers = Grid(*_headed(text)) if len(text) <= MOST_ROWS else None
    svg = inline_svg(drawn, name, f"{plot.title}. {plot.finding(frame)}")
    return Panel(heading, plot.finding(frame), svg, float(drawn.get_figwidth()), files, numbers)


def write_csv(frame: pd.DataFrame, path: Path) -> str:
    """Write a frame, always the same bytes for the same numbers; columns that begin with "_" are not data.

    Returns:
        The file's name.
    """
    frame[data_columns(frame)].to_csv(path, index=False, float_format="%.8g", lineterminator="\n")
    return path.name


def settle(drawn: Figure) -> None:
    """Lay a figure out once, instead of once for every file written from it."""
    with theme():
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")


def save(drawn: Figure, path: Path, salt: str) -> None:
    """Write a figure; the same figure gives the same bytes."""
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with theme(), matplotlib.rc_context({"svg.hashsalt": salt}):
        drawn.savefig(path, metadata=dated.get(path.suffix[1:]))


def inline_svg(drawn: Figure, name: str, title: str) -> str:
    """A figure as an SVG element for a page: ids of its own, text and background in the page's colours."""
    buffer = io.StringIO()
    with theme(), matplotlib.rc_context({"svg.hashsalt": name}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="none", transparent=False)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    opening = re.compile(r'<svg\b[^>]*?viewBox="([^"]+)"[^>]*>', flags=re.DOTALL)
    return opening.sub(
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" '
        rf'role="img" aria-label="{escape(title)}">',
        text,
        count=1,
    )


def slug(text: str) -> str:
    """A value as part of a file name.

    >>> slug("digits, batch 16")
    'digits-batch-16'
    """
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
