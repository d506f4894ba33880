"""The page: everything that some runs show, in one file without any outside reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from analysis.figures import (
    convergence,
    guesses,
    iterations,
    jacobian_powers,
    memory,
    order,
    pareto,
    redundancy,
    samples,
    tau,
    time_breakdown,
)
from analysis.figures.plot import Omitted, Plot, Table
from analysis.load import Runs, load
from analysis.report import provenance, table1
from analysis.report.render import FORMATS, Section, render, render_table
from harness import __version__
from harness.errors import HarnessError, StoreError, unknown

PAGE = "report.html"
FIGURES = "figures"

PLOTS: tuple[Plot, ...] = tuple(
    plot
    for family in (
        *(pareto, samples, iterations, time_breakdown, convergence, order),
        *(guesses, jacobian_powers, tau, memory, redundancy),
    )
    for plot in family.PLOTS
)
"""Every figure family, in the order of the page."""

HEADLINE: Table = table1.TABLES[0]
TABLES: tuple[Table, ...] = tuple(time_breakdown.TABLES)
"""The tables after the figures; `HEADLINE` comes before them."""


def build(paths: Sequence[Path | str], out: Path | str | None = None, formats: Sequence[str] = ()) -> Path:
    """Render the figures and the page of some runs, merged by cell, into `out`, by default the first path.

    `formats` of `FORMATS` are written besides PNG. Returns the page.
    """
    if not paths:
        raise HarnessError("a report needs at least one run folder")
    for kind in formats:
        if kind not in FORMATS:
            raise unknown("figure format", kind, FORMATS)
    runs = load(paths)
    folder = Path(out if out is not None else paths[0])
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        wanted = tuple(dict.fromkeys(("png", *formats)))
        sections = [render(plot, runs, folder / FIGURES, wanted) for plot in PLOTS]
        headline, *tables = (render_table(table, runs, folder / FIGURES) for table in (HEADLINE, *TABLES))
        page = folder / PAGE
        page.write_text(_page(runs, headline, sections, tables), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the report to '{folder}': {error.strerror or error}") from error
    return page


def _page(runs: Runs, headline: Section, sections: list[Section], tables: list[Section]) -> str:
    try:
        headlines = table1.headlines(table1.data(runs))
    except Omitted:
        headlines = []
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        summary=provenance.summary(runs),
        headlines=headlines,
        headline=headline,
        sections=sections,
        tables=tables,
        method=provenance.method(runs),
        environment=provenance.environment(runs),
        figures=FIGURES,
        version=__version__,
    )
