"""A comparison as text for a terminal, Markdown for a pull request, JSON for a program, JUnit's XML for a service."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any
from xml.etree import ElementTree

import numpy as np

from analysis.compare.runs import TOLERANCE, CellVerdict, compare_runs
from analysis.compare.verdicts import UNTIMED, VERDICTS, Comparison, Verdict
from analysis.text import markdown_table, print_table, room
from harness.runs.store import Run
from harness.runs.titles import flow_title, parsed


def text(comparison: Comparison, shown: Sequence[Verdict]) -> str:
    """A table for a terminal of the verdicts that are to be shown, then the notes and the sum."""
    from rich.console import Console

    console = Console(width=room(160), color_system=None)
    with console.capture() as capture:
        if shown:
            *_, evidence = headings = shown[0].HEADINGS
            rows = [dict(zip(headings, verdict.row(), strict=True)) for verdict in shown]
            print_table(console, rows, folded=evidence, box=None)
        for line in _closing(comparison):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    return capture.get().rstrip()


def markdown(comparison: Comparison, shown: Sequence[Verdict]) -> str:
    """A Markdown table, then the notes and the sum."""
    table = [markdown_table([shown[0].HEADINGS, *(verdict.row() for verdict in shown)]), ""] if shown else []
    return "\n".join([*table, *(f"{line}  " for line in _closing(comparison))]).rstrip()


def as_json(comparison: Comparison, shown: Sequence[CellVerdict]) -> str:
    """Every figure as a number, options as objects; what is unknown is null."""
    names = ("dataset", "checkpoint", "decoder", "label", "tau", "denoise", "batch_size", "seed")
    whole = {
        "regressed": comparison.regressed,
        "tolerance": comparison.tolerance,
        "same_machine": comparison.same_machine,
        "differences": comparison.differences,
        "counts": dict(_counts(comparison)),
        "untested": comparison.untested,
        "notes": comparison.notes,
        "cells": [
            {
                "cell_key": cell.cell_key,
                **{name: _plain(cell.description.get(name)) for name in names},
                "options": parsed(cell.description.get("options")),
                "guidance": parsed(cell.description.get("guidance")) or None,
                "verdict": cell.verdict,
                "state": cell.state or None,
                "regressed": cell.regressed,
                "regressed_by": cell.regressed_by,
                "base_speedup": _plain(cell.base),
                "new_speedup": _plain(cell.new),
                "time_factor": cell.shift and {name: _plain(value) for name, value in cell.shift._asdict().items()},
                "finds": _plain(cell.finds),
                "figures": {
                    name: dict(zip(("base", "new"), map(_plain, both), strict=True))
                    for name, both in cell.figures.items()
                },
                "evidence": cell.evidence,
            }
            for cell in shown
        ],
    }
    return json.dumps(whole, indent=2, allow_nan=False)


def junit(comparison: Comparison, shown: Sequence[CellVerdict]) -> str:
    """JUnit's XML for services of continuous integration: a cell is a test, skipped where no time was judged."""
    suite = ElementTree.Element("testsuite", name="harness compare", errors="0", tests=str(len(shown)))
    for cell in shown:
        about = cell.description
        place = {"classname": f"{flow_title(about)}, batch {about['batch_size']}", "name": cell.row()[2]}
        case = ElementTree.SubElement(suite, "testcase", {name: _legal(text) for name, text in place.items()})
        told = _legal("; ".join(cell.evidence))
        if cell.regressed:
            verdict = "; ".join(filter(None, [cell.verdict, cell.state]))
            ElementTree.SubElement(case, "failure", type=", ".join(cell.regressed_by), message=verdict).text = told
        elif cell.verdict in ("gone", *UNTIMED):
            ElementTree.SubElement(case, "skipped", message=_legal(f"{cell.verdict}: {told}".removesuffix(": ")))
        else:
            ElementTree.SubElement(case, "system-out").text = f"{cell.verdict}: {told}"
    suite.set("failures", str(len(suite.findall("*/failure"))))
    suite.set("skipped", str(len(suite.findall("*/skipped"))))
    ElementTree.SubElement(suite, "system-out").text = _legal("\n".join(_closing(comparison)))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _legal(text: str) -> str:
    """Text without what XML 1.0 has no way to write."""
    return _ILLEGAL.sub("?", text)


def print_comparison(
    base: Run,
    new: Run,
    form: str = "text",
    only_regressed: bool = False,
    tolerance: float = TOLERANCE,
    require_evidence: bool = False,
) -> int:
    """Compare two runs and print the result; the exit code, 1 for a regression, or for a cell without evidence."""
    comparison = compare_runs(base, new, tolerance)
    print(FORMATS[form](comparison, [cell for cell in comparison.verdicts if cell.regressed or not only_regressed]))
    return int(comparison.regressed or (require_evidence and comparison.untested > 0))


FORMATS: dict[str, Callable[[Comparison, Sequence[Any]], str]] = {
    "text": text, "markdown": markdown, "json": as_json, "junit": junit,
}  # fmt: skip
"""Renderings by name: (comparison, verdicts to be shown) -> text."""


def _closing(comparison: Comparison) -> list[str]:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(comparison))
    regressed = [verdict.regressed_by for verdict in comparison.verdicts if verdict.regressed]
    causes = ", ".join(f"{count} by {cause}" for cause, count in Counter(chain(*regressed)).most_common())
    end = f"{len(regressed)} regressed (marked !): {causes}" if regressed else "no regression"
    total = f"{len(comparison.verdicts)} {comparison.verdicts[0].PLURAL}: {counts}; {end}"
    notes = [f"note: {note}" for note in comparison.notes]
    if comparison.untested:
        notes.append(
            f"note: no evidence of time for {comparison.untested} of them: gone, not comparable, or few quiet rounds"
        )
    return [*notes, f"{total}; tolerance {comparison.tolerance:.0%}"]


def _counts(comparison: Comparison) -> list[tuple[str, int]]:
    found = Counter(verdict.verdict for verdict in comparison.verdicts)
    return [(verdict, found[verdict]) for verdict in VERDICTS if found[verdict]]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
