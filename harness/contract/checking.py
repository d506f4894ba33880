"""Checking a decoder against every clause on several flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import harness.contract.clauses  # noqa: F401 - importing it defines the clauses
from harness.contract.case import CLAUSES, Broken, Case, Finding, NotApplicable
from harness.decoders import decoders
from harness.errors import unknown
from harness.flows import CausalFlow, load_flow
from harness.flows.checkpoints import checkpoint_path, shipped
from harness.flows.coupled import coupled_discrete, coupled_tarflow
from harness.registry import first_line

CONTRACT_FLOWS: dict[str, Callable[[int], CausalFlow]] = {
    "coupled": coupled_tarflow,
    "coupled-classes": lambda seed: coupled_tarflow(seed, num_classes=4),
    "coupled-discrete": coupled_discrete,
}
"""Small random flows by name, from a seed."""


def check(
    decoder: str,
    flows: Iterable[str] = (),
    seed: int = 0,
    only: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> Iterator[Finding]:
    """One finding per flow and clause for a decoder, a registered name or ``package.module:Class``.

    `flows` are names in `CONTRACT_FLOWS`, shipped flows or paths of checkpoints; by default `default_flows()`.
    `weights` are which ones of the checkpoints, see `load_flow`.
    """
    names, wanted = planned(decoder, flows, only)
    for flow_name in names:
        flow = CONTRACT_FLOWS[flow_name](seed) if flow_name in CONTRACT_FLOWS else load_flow(flow_name, weights=weights)
        case = Case(decoder, flow, flow_name, seed, options=options or {})
        for name in wanted:
            yield examine(name, case)


def planned(decoder: str, flows: Iterable[str], only: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of the flows and clauses that a decoder is checked on; one that is not there is a `HarnessError`."""
    decoders.get(decoder)
    names, wanted = list(flows) or default_flows(), list(only) or list(CLAUSES)
    for name in wanted:
        if name not in CLAUSES:
            raise unknown("clause", name, CLAUSES)
    for name in names:
        if name not in CONTRACT_FLOWS:
            checkpoint_path(name)
    return names, wanted


def default_flows() -> list[str]:
    """The random flows, and the shipped digits where they are."""
    return [*CONTRACT_FLOWS, *({"digits"} & set(shipped()))]


def examine(name: str, case: Case) -> Finding:
    """Check one clause; whatever a decoder raises is a failure, told in one line."""
    try:
        outcome, evidence = "passed", CLAUSES[name](case)
    except NotApplicable as reason:
        outcome, evidence = "not applicable", str(reason)
    except Broken as broken:
        outcome, evidence = "failed", str(broken)
    except Exception as error:
        outcome, evidence = "failed", f"raised {type(error).__name__}: {' '.join(str(error).split())}"
    return Finding(name, case.flow_name, case.seed, outcome, evidence)


def print_findings(decoder: str, findings: Iterable[Finding]) -> int:
    """Print findings as they come, each failure with the command that reproduces it; the exit code, 1 for a failure."""
    counts = dict.fromkeys(("passed", "failed", "not applicable"), 0)
    for finding in findings:
        counts[finding.outcome] += 1
        print(f"{finding.outcome:<14}  {finding.flow:<16} {finding.clause:<14} {finding.evidence}", flush=True)
        if finding.outcome == "failed":
            promise = first_line(CLAUSES[finding.clause])
            print(f"{'':14}  promised: {promise}")
            print(
                f"{'':14}  again: harness check {decoder} --flow {finding.flow} --clause {finding.clause} "
                f"--seed {finding.seed}"
            )
    print(f"{decoder}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return int(counts["failed"] > 0)
