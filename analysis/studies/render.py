"""From run folders to a study's text, CSVs and figures."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis.figures.files import save, settle, write_csv
from analysis.figures.plot import Omitted
from analysis.load import Runs, load
from analysis.studies.base import Findings
from analysis.studies.claims import checked, measured, read_findings, rows, score, summary, verdict, write_findings
from analysis.studies.stored import (
    PROVENANCE,
    ROUNDED,
    TIMED,
    Comparison,
    compare,
    origin,
    provenance,
    rests_on,
)
from analysis.text import listing, markdown, percent, quantity, times
from harness.errors import HarnessError, StoreError

SHIPPED = Path(__file__).parent
TABLE, TEXT = "README.md", "text.md.j2"
_KEPT = (
    "what is stored of study '{name}' stays: it rests on {flows} too, which is not here; what the other flows gave is "
    "'{staging}/{name}.md', and --results stores it elsewhere"
)


def render_study(
    study: Path, title: str, profile: str, folders: Sequence[Path], staging: Path, results: Path, check: bool = False,
    absent: Collection[str] = (),
) -> Comparison:  # fmt: skip
    """Write the text, tables and figures of the study in a folder into `results`, and the claim table anew.

    With `check`, what is stored is left alone where a deterministic CSV differs from it, and the new ones stay in
    `staging`; the comparison is returned. So is what rests on an optional flow that is `absent` here, with `check` or
    without: nothing here could measure its rows again. A `HarnessError` without a text, or where a finding answers no
    claim.
    """
    require_text(study)
    name = study.resolve().name.replace("_", "-")
    runs = load(folders)
    try:
        with _told(study, name, runs) as runs:
            found = _findings(study, runs)
            text = _text(study, name, title, profile, found, machine(runs))
            checked(found.claims, of_the_paper=study.resolve().parent == SHIPPED)
            shutil.rmtree(staging, ignore_errors=True)
            (staging / name).mkdir(parents=True)
            _write_files(found, staging / name)
            made = provenance(runs.runs)
            write_csv(made, staging / name / PROVENANCE)
        (staging / f"{name}.md").write_text(f"{text.rstrip()}\n\n{origin(made)}\n", encoding="utf-8")
        lacking = rests_on(results / name, absent)
        compared = compare(staging / name, results / name, lacking) if check else Comparison()
        if lacking:
            compared += Comparison(kept=(_KEPT.format(name=name, flows=listing(lacking), staging=staging),))
        elif not compared.differing:
            results.mkdir(parents=True, exist_ok=True)
            for old in (results / name).glob("*.*"):  # folders are no study's to write: flows lie in one
                if old.is_file():
                    old.unlink()
            shutil.copytree(staging / name, results / name, dirs_exist_ok=True)
            shutil.copy(staging / f"{name}.md", results / f"{name}.md")
        (results / TABLE).write_text(claim_table(results), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write study '{name}' to '{results}': {error.strerror or error}") from error
    return compared


class _Asked(dict[str, pd.DataFrame]):
    """The tables of some runs; `empty` are those without rows that were asked for."""

    def __init__(self, tables: Mapping[str, pd.DataFrame]) -> None:
        super().__init__(tables)
        self.empty: dict[str, None] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if (found := super().get(name, pd.DataFrame())).empty:
            self.empty[name] = None
        return found


@contextmanager
def _told(study: Path, name: str, runs: Runs) -> Iterator[Runs]:
    """The runs for a study's files to read; what these raise over too little becomes a sentence that says where."""
    asked = _Asked(runs.tables)
    try:
        yield replace(runs, tables=asked)
    except (HarnessError, OSError):
        raise
    except Omitted as reason:
        raise HarnessError(f"study '{name}' cannot be told from these runs: {reason}") from reason
    except Exception as error:
        empty = list(asked.empty) or (["residuals"] if runs.cells_with_residuals.empty else [])
        frames = traceback.extract_tb(error.__traceback__)
        place = next((one for one in frames[::-1] if Path(one.filename).is_relative_to(study.resolve())), frames[-1])
        cause = f"{error} is not there" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        lack = f"no rows in {listing(empty)}, which it reads" if empty else f"too little for it ({cause})"
        where = f"{Path(place.filename).name}, line {place.lineno}"
        raise HarnessError(f"study '{name}' cannot be told from these runs: they hold {lack}; see {where}") from error


def require_text(study: Path) -> None:
    """A `HarnessError` where the study has no text: told before anything is measured for it."""
    if not (study / TEXT).is_file():
        raise HarnessError(f"the study has no text: {study / TEXT} is missing")


def claim_table(results: Path) -> str:
    """The score, one line a claim and the details in Markdown, from the findings stored below `results`."""
    found = rows(read_findings(results))
    template = _environment(SHIPPED).get_template(f"{TABLE}.j2")
    return template.render(rows=found, score=score(found), summary=summary(found), measured=measured)


def _write_files(found: Findings, folder: Path) -> None:
    for ending, frames in ((".csv", found.tables), (ROUNDED, found.rounded), (TIMED, found.timed)):
        for label, frame in frames.items():
            write_csv(frame, folder / f"{label}{ending}")
    for label, drawn in found.figures.items():
        settle(drawn)
        save(drawn, folder / f"{label}.png", label)
    write_findings(found.claims, folder)


def _text(study: Path, name: str, title: str, profile: str, found: Findings, where: str) -> str:
    template = _environment(study).get_template(TEXT)
    return template.render(
        name=name,
        title=title,
        profile=profile,
        tables=found.tables,
        timed=found.timed,
        values=found.values,
        claims=found.claims,
        verdict=verdict,
        machine=where,
        figure=lambda label, caption="": f"![{caption or label}]({name}/{label}.png)",
    )


def _findings(study: Path, runs: Runs) -> Findings:
    file = study / "findings.py"
    if not file.is_file():
        return Findings()
    spec = importlib.util.spec_from_file_location(f"study_{study.resolve().name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.findings(runs)


def machine(runs: Runs) -> str:
    """Where the runs were made, for the sentence in front of timed numbers."""
    places = []
    for run in runs.runs:
        facts = run.environment
        where = facts.get("gpu") or f"{facts.get('cpu')}, {facts.get('threads')} threads"
        if where not in places:
            places.append(where)
    return listing(places)


def pick(frame: pd.DataFrame, **where: Any) -> dict[str, Any]:
    """The one row whose columns have these values; None stands for a missing one.

    >>> pick(pd.DataFrame({"tau": [0.5, 1.0], "fid": [18.4, 18.5]}), tau=0.5)["fid"]
    18.4
    """
    chosen = frame
    for column, value in where.items():
        chosen = chosen[chosen[column].isna() if value is None else chosen[column] == value]
    if len(chosen) != 1:
        raise HarnessError(f"{len(chosen)} rows have {where}; a study's text needs exactly one")
    return {str(key): value for key, value in chosen.to_dict("records")[0].items()}


def _environment(folder: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        quantity=quantity, times=times, listing=listing, percent=percent, markdown=markdown, pick=pick
    )
    return environment
