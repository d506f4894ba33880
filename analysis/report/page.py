"""The page: everything that some runs show, in one file without any outside reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from analysis.figures import (
    certificate,
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
from analysis.figures.fit import WIDTHS, limited
from analysis.figures.plot import Omitted, Plot, Table
from analysis.load import Runs, load
from analysis.report import provenance, table1
from analysis.report.render import FORMATS, Section, render
from harness import __version__
from harness.errors import HarnessError, StoreError, unknown

PAGE = "report.html"
FIGURES = "figures"

PLOTS: tuple[Plot, ...] = tuple(
    plot
    for family in (
        *(pareto, samples, iterations, time_breakdown, convergence, order),
        *(guesses, jacobian_powers, tau, memory, redundancy, certificate),
    )
    for plot in family.PLOTS
)
"""Every figure family, in the order of the page."""

HEADLINE: Table = table1.TABLES[0]
TABLES: tuple[Table, ...] = tuple(time_breakdown.TABLES)
"""The tables after the figures; `HEADLINE` comes before them."""


def build(
    paths: Sequence[Path | str],
    out: Path | str | None = None,
    formats: Sequence[str] = (),
    width: str | None = None,
    only: Sequence[str] = (),
) -> Path:
    """Render the figures and the page of some runs, merged by cell, into `out`, by default the first path.

    `formats` of `FORMATS` are written besides PNG, and figures as wide as one of `WIDTHS`, by default as each needs.
    Returns the page; where `only` names figures and tables, these alone are written, and their folder is returned. A
    `HarnessError` for a name of none, and where the runs cannot show one that was asked for.
    """
    if not paths:
        raise HarnessError("a report needs at least one run folder")
    everything: tuple[Plot | Table, ...] = (HEADLINE, *PLOTS, *TABLES)
    entries = {entry.name: entry for entry in everything}
    given = {
        "figure format": (formats, FORMATS),
        "figure": (only, entries),
        "width": ([width] if width else [], WIDTHS),
    }
    for kind, (names, known) in given.items():
        for name in names:
            if name not in known:
                raise unknown(kind, name, known)
    runs = load(paths)
    folder = Path(out if out is not None else paths[0])
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        wanted = tuple(dict.fromkeys(("png", *formats)))
        with limited(WIDTHS[width] if width else None):
            found = {name: render(entries[name], runs, folder / FIGURES, wanted) for name in only or entries}
        if only:
            if absent := next((section for section in found.values() if section.omitted), None):
                raise HarnessError(f"these runs cannot show '{absent.name}': {absent.omitted}")
            return folder / FIGURES
        page = folder / PAGE
        page.write_text(_page(runs, list(found.values())), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the report to '{folder}': {error.strerror or error}") from error
    return page


def _page(runs: Runs, sections: list[Section]) -> str:
    try:
        frame = table1.data(runs)
        headlines, against = table1.headlines(frame), table1.against_baselines(frame, runs)
    except Omitted:
        headlines, against = [], []
    headline, *shown = (section for section in sections if not section.omitted or section is sections[0])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment.get_template("report.html").render(
        summary=provenance.summary(runs),
        headlines=headlines,
        against=against,
        headline=headline,
        sections=shown,
        absent=[section for section in sections[1:] if section.omitted],
        method=provenance.method(runs),
        environment=provenance.environment(runs),
        figures=FIGURES,
        version=__version__,
    )


def _code(text: str) -> Markup:
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
