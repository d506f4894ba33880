"""The claim table: what the paper says beside what the studies found, one row for each claim."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.quality import UNDECIDED
from analysis.studies.base import Finding
from analysis.text import DASH, markdown_table, markdown_text
from harness.errors import HarnessError, unknown

STORED = ("claims.csv", "claims-timed.csv")
"""Where a study's findings are kept: those that a rerun repeats exactly, and those that rest on clocks."""

_VERDICTS = {True: "agree", False: "disagree", None: "mixed", UNDECIDED: UNDECIDED}
_ANSWERS = {True: "answered", False: "open", None: "partly answered", UNDECIDED: UNDECIDED}

_OWN = {True: "agree", False: "disagree", None: "not measurable", UNDECIDED: UNDECIDED}
_STORED: dict[str, Any] = {"True": True, "False": False, UNDECIDED: UNDECIDED}

_COLUMNS = [field.name for field in fields(Finding) if field.name != "timed"]


@dataclass(frozen=True)
class Claim:
    """What the paper says."""

    id: str  # what findings refer to
    kind: str  # "claim", "limitation" or "open question"
    source: str  # where it says so
    says: str  # in our words
    beyond: str | None = None  # why it cannot be measured here at all


@dataclass(frozen=True)
class Row:
    """A claim and what the studies found of it."""

    claim: Claim
    verdict: str  # of `_VERDICTS` or, of an open question, `_ANSWERS`; "undecided"; "not measurable here"; "not run"
    findings: list[tuple[str, Finding]]  # study and finding, one for each flow


@cache
def claims() -> dict[str, Claim]:
    """All claims by id, in the order of the table."""
    text = (files("analysis") / "studies" / "claims.toml").read_text(encoding="utf-8")
    return {entry["id"]: Claim(**entry) for entry in tomllib.loads(text)["claim"]}


def checked(findings: Sequence[Finding], of_the_paper: bool = True) -> Sequence[Finding]:
    """The findings of one study; a `HarnessError` for one of a claim not in `claims`, or with an empty field."""
    for finding in findings:
        if of_the_paper and finding.claim not in claims():
            raise unknown("claim", finding.claim, claims())
        if empty := [name for name, value in asdict(finding).items() if value == ""]:
            raise HarnessError(f"the finding of claim '{finding.claim}' leaves {', '.join(empty)} empty")
    return findings


def write_findings(findings: Sequence[Finding], folder: Path) -> None:
    """Keep a study's findings as CSV, so that the table can be made without its runs."""
    for name, timed in zip(STORED, (False, True), strict=True):
        rows = [asdict(finding) for finding in findings if finding.timed is timed]
        if rows:
            pd.DataFrame(rows, columns=_COLUMNS).to_csv(folder / name, index=False, lineterminator="\n")


def read_findings(results: Path) -> list[tuple[str, Finding]]:
    """Study and finding, of every study whose text is stored below `results`."""
    found = []
    for path in sorted(file for name in STORED for file in results.glob(f"*/{name}")):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        for row in frame.to_dict("records"):
            agrees = _STORED.get(row.pop("agrees"))
            named = {str(key): value for key, value in row.items()}
            found.append((path.parent.name, Finding(**named, agrees=agrees, timed="timed" in path.stem)))
    return found


def rows(findings: Sequence[tuple[str, Finding]]) -> list[Row]:
    """A row for each claim of the paper, then for each of a study's own: agreed with where all its findings agree."""
    found = []
    own_claims = {
        finding.claim: Claim(finding.claim, "own claim", f"study {study}", finding.claim.replace("-", " "))
        for study, finding in findings
        if finding.claim not in claims()
    }
    for claim in (claims() | own_claims).values():
        own = [(study, finding) for study, finding in findings if finding.claim == claim.id]
        verdicts = {finding.agrees for _, finding in own} - {None}
        if verdicts:
            words = _ANSWERS if claim.kind == "open question" else _VERDICTS
            verdict = words[None if len(verdicts) > 1 else verdicts.pop()]
        else:
            verdict = "not measurable here" if own or claim.beyond else "not run"
        found.append(Row(claim, verdict, own))
    return found


def table(findings: Sequence[tuple[str, Finding]]) -> str:
    """The claim table in Markdown."""
    head = ["", "the paper", "says", "verdict", "what we measured", "criterion"]
    return markdown_table([head, *(_cells(row) for row in rows(findings))])


def _cells(row: Row) -> list[str]:
    claim = row.claim
    measured = "<br>".join(_measured(study, finding, row.verdict) for study, finding in row.findings)
    criteria = "; ".join(dict.fromkeys(finding.criterion for _, finding in row.findings))
    nothing = f"nothing: {claim.beyond}" if claim.beyond else "not measured yet"
    return [claim.kind, claim.source, claim.says, f"**{row.verdict}**", measured or nothing, criteria or DASH]


def _measured(study: str, finding: Finding, verdict: str) -> str:
    own = f" ({_OWN[finding.agrees]})" if verdict == "mixed" else ""
    clock = " ⏱" if finding.timed else ""
    return f"[{markdown_text(finding.flow)}]({study}.md){clock}: {finding.measured}{own}"
