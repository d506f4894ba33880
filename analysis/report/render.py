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
class Grid:
    """A table as text: headings and rows of as many cells."""

    headings: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, text: pd.DataFrame) -> Grid:
        headings, *rows = rows_of(text)
        return cls(headings, rows)


@dataclass(frozen=True)
class Panel:
    """One rendered figure of a family, or a table."""

    finding: str
    files: dict[str, str]  # label to name below the folder of figures
    numbers: Grid | None  # what is drawn, where it is short enough to read
    heading: str = ""  # the flow it is of, where there are several
    svg: str = ""
    width: float = 0.0  # inches, for the least width at which it stays legible


@dataclass(frozen=True)
class Section:
    """A figure family or a table as rendered, or the reason why it was left out."""

    name: str
    title: str
    reading: str
    panels: list[Panel] = field(default_factory=list)
    omitted: str | None = None
    defect: bool = False  # whether it was left out for a fault of ours


def render(entry: Plot | Table, runs: Runs, folder: Path, formats: tuple[str, ...]) -> Section:
    """Draw a family, or write a table's files, into `folder`, and prepare it for the page.

    What these runs cannot show becomes the section's reason; a defect in one figure must not cost the others.
    """
    defect = False
    try:
        frame = entry.data(runs)
        if isinstance(entry, Table):
            panels = [_written(entry, frame, folder)]
        else:
            panels = [_panel(entry, *part, folder, formats) for part in _split(entry, frame)]
        return Section(entry.name, entry.title, entry.reading, panels)
    except Omitted as reason:
        omitted = f"{reason}."
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        defect, cause = True, f"{type(error).__name__}: {error}"
        omitted = f"This figure could not be drawn ({cause}). That is a defect; please report it."
    return Section(entry.name, entry.title, entry.reading, omitted=omitted, defect=defect)


def _written(table: Table, frame: pd.DataFrame, folder: Path) -> Panel:
    files = {"CSV": write_csv(frame, folder / f"{table.name}.csv")}
    for kind, write in table.formats.items():
        path = folder / f"{table.name}.{kind}"
        path.write_text(write(frame), encoding="utf-8")
        files[FORMAT_NAMES.get(kind, kind)] = path.name
    return Panel(table.finding(frame), files, Grid.of(as_text(frame, table.headings)))


def _split(plot: Plot, frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    flows = list(dict.fromkeys(frame["flow"]))
    slugs = [slug(str(flow)) for flow in flows]
    for place, flow in enumerate(flows):
        name = slugs[place] if slugs.count(slugs[place]) == 1 and slugs[place] else f"{slugs[place]}-{place + 1}"
        heading, stem = (str(flow), f"{plot.name}-{name.lstrip('-')}") if len(flows) > 1 else ("", plot.name)
        yield heading, stem, frame[frame["flow"] == flow].reset_index(drop=True)


def _panel(plot: Plot, heading: str, stem: str, frame: pd.DataFrame, folder: Path, formats: tuple[str, ...]) -> Panel:
    drawn = plot.figure(frame)
    settle(drawn)
    files = {"CSV": write_csv(frame, folder / f"{stem}.csv")}
    for kind in formats:
        files[kind.upper()] = f"{stem}.{kind}"
        save(drawn, folder / f"{stem}.{kind}", stem)
    text, finding = as_text(frame[data_columns(frame)]), plot.finding(frame)
    numbers = Grid.of(text) if len(text) <= MOST_ROWS else None
    svg = inline_svg(drawn, stem, f"{plot.title}. {finding}")
    return Panel(finding, files, numbers, heading, svg, float(drawn.get_figwidth()))
