"""From a plot to files and page elements: CSV, PNG and others on request, and SVG that follows the page's colours."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis.figures.files import data_columns, inline_svg, save, settle, slug, write_csv
from analysis.figures.plot import Omitted, Plot, Table
from analysis.load import Runs
from analysis.text import as_text, rows_of

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
