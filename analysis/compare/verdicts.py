"""What a comparison says: one verdict for each cell or benchmark, the evidence for it, and the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

ALPHA = 0.02
"""Level of the Mann-Whitney test below which a change of time is more than noise.

Simulated at 20 rounds a run and a tolerance of 5 %, 1500 tries each: a slowdown of 10 % is found, and an unchanged cell
called slower, in this share of tries, for lognormal noise of every measurement and 2 % outliers of 1.5 times:
noise 2 %: 1.000, 0.000; 3 %: 1.000, 0.001; 4 %: 0.981, 0.004; 5 %: 0.883, 0.008.
"""

VERDICTS = ("invalid", "slower", "ambiguous", "not measured", "gone", "new", "faster", "same")
"""Every verdict, the most worrying first."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one thing that was compared."""

    HEADINGS: ClassVar[tuple[str, ...]]
    PLURAL: ClassVar[str]

    verdict: str  # one of `VERDICTS`
    regressed: bool = False  # whether the comparison fails because of it
    evidence: list[str] = field(default_factory=list)  # sentences, the decisive one first
    tested: bool = True  # whether both sides were measured so often that a change of time would have been seen

    def row(self) -> list[str]:
        raise NotImplementedError


V = TypeVar("V", bound=Verdict)


@dataclass(frozen=True)
class Comparison(Generic[V]):
    """Every verdict, and what the comparison rests on."""

    verdicts: list[V]  # the most worrying first
    same_machine: bool  # whether both sides were measured in one environment
    tolerance: float  # share by which a time or a cost may grow
    notes: list[str]  # what a reader should know about the whole

    @property
    def regressed(self) -> bool:
        return any(verdict.regressed for verdict in self.verdicts)

    @property
    def untested(self) -> int:
        """How many verdicts rest on no evidence of time: one side is missing, was not measured, or too seldom."""
        return sum(verdict.verdict in ("gone", "not measured") or not verdict.tested for verdict in self.verdicts)


def judge(factor: float, p_value: float, tolerance: float) -> str:
    """What a factor of times, new over old, means, by the Mann-Whitney test's `p_value`, NaN where there is none."""
    if max(factor, 1 / factor) <= 1 + tolerance:
        return "same"
    if not p_value < ALPHA:
        return "ambiguous"
    return "slower" if factor > 1 else "faster"
