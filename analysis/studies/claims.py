"""The claim table: what the paper says beside what the studies found, one row for each claim."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.quality import UNDECIDED
from analysis.studies.base import Finding
from analysis.text import listing, markdown_table, markdown_text
from harness.errors import HarnessError, unknown

STORED = ("claims.csv", "claims-timed.csv")
"""Where a study's findings are kept: those that a rerun repeats exactly, and those that rest on clocks."""

_VERDICTS = {True: "agree", False: "disagree", None: "mixed", UNDECIDED: UNDECIDED}
_ANSWERS = {True: "answered", False: "open", None: "partly answered", UNDECIDED: UNDECIDED}
_OWN = _VERDICTS | {None: "not measurable"}
_NOTHING = ("not measurable here", "not run")
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
    verdict: str  # of `_VERDICTS` or, of an open question, `_ANSWERS`, or of `_NOTHING`
    findings: list[tuple[str, Finding]]  # study and finding, one for each flow

    @property
    def criteria(self) -> list[str]:
        """By which its verdict follows."""
        return list(dict.fromkeys(finding.criterion for _, finding in self.findings))


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
            verdict = _NOTHING[0] if own or claim.beyond else _NOTHING[1]
        found.append(Row(claim, verdict, own))
    return found


def score(found: Sequence[Row]) -> str:
    """How many claims and questions came to which verdict, as a sentence.

    >>> score(rows([("s", Finding("finite", "digits", "m", True, "c"))])[3:5])
    '2 claims: 1 agree and 1 not run.'
    """
    told = []
    for questions, kind in ((False, "claims"), (True, "open questions")):
        counts = Counter(row.verdict for row in found if (row.claim.kind == "open question") is questions)
        words = dict.fromkeys((*_VERDICTS.values(), *_ANSWERS.values(), *_NOTHING))
        known = [verdict for verdict in words if counts[verdict]]
        parts = listing([f"{counts[verdict]} {verdict}" for verdict in known])
        told += [f"{counts.total()} {kind}: {parts}"] if counts else []
    return f"{'; '.join(told)}."


def summary(found: Sequence[Row]) -> str:
    """One line a claim in Markdown, with a link to its details."""
    lines = [[row.claim.says, row.claim.source, f"[{row.verdict}](#{row.claim.id})"] for row in found]
    return markdown_table([["the paper says", "where", "verdict"], *lines])


def verdict(finding: Finding) -> str:
    """What one finding says of its claim."""
    return _OWN[finding.agrees]


def measured(study: str, finding: Finding, whole: str) -> str:
    """A finding as a line of Markdown; it tells its own verdict where the `whole` row's is mixed."""
    own = f" ({verdict(finding)})" if whole == "mixed" else ""
    clock = " ⏱" if finding.timed else ""
    return f"[{markdown_text(finding.flow)}]({study}.md){clock}: {finding.measured}{own}"
