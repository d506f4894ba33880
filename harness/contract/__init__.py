"""What every decoder promises, clause by clause, checked from outside.

A clause is a function of a `Case` (one decoder on one flow from one seed). It returns the evidence that the promise
holds, raises `Broken` with the evidence that it does not, or `NotApplicable` with the reason. ``harness check`` and the
contract tests run the same clauses; a new decoder is covered by being registered.
"""

from harness.contract.case import CLAUSES, Broken, Case, Finding, NotApplicable
from harness.contract.checking import check, default_flows, examine, planned, print_findings

__all__ = [
    "CLAUSES",
    "Broken",
    "Case",
    "Finding",
    "NotApplicable",
    "check",
    "default_flows",
    "examine",
    "planned",
    "print_findings",
]
