"""What a comparison says: one verdict for each cell or benchmark, the evidence for it, and the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

ALPHA = 0.03
"""Level of the Mann-Whitney test below which a change of time, if beyond the tolerance, is more than noise."""

VERDICTS = (
    "failed", "slower", "ambiguous", "not quiet", "not comparable", "not measured", "gone", "new", "faster", "same",
)  # fmt: skip
"""Every verdict, the most worrying first. Whether what was compared is valid is told besides."""
UNTIMED = ("not quiet", "not comparable", "not measured")
"""Those on times that cannot be compared; costs that need no clock are judged all the same."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one thing that was compared."""

    HEADINGS: ClassVar[tuple[str, ...]]
    PLURAL: ClassVar[str]

    verdict: str  # one of `VERDICTS`
    regressed_by: list[str] = field(default_factory=list)  # what the comparison fails because of
    evidence: list[str] = field(default_factory=list)  # sentences, the decisive one first
    tested: bool = True  # whether both sides were measured so often that a change of time would have been seen

    @property
    def regressed(self) -> bool:
        return bool(self.regressed_by)

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
    differences: list[str] = field(default_factory=list)  # of the two environments, where times depend on it

    @property
    def regressed(self) -> bool:
        return any(verdict.regressed for verdict in self.verdicts)

    @property
    def untested(self) -> int:
        """How many verdicts rest on no evidence of time: a side is missing or cannot be compared, or too few rounds."""
        return sum(verdict.verdict in ("gone", *UNTIMED) or not verdict.tested for verdict in self.verdicts)


def judge(factor: float, p_value: float, tolerance: float) -> str:
    """What a factor of times, new over old, means, by the Mann-Whitney test's `p_value`, NaN where there is none."""
    if max(factor, 1 / factor) <= 1 + tolerance:
        return "same"
    if not p_value < ALPHA:
        return "ambiguous"
    return "slower" if factor > 1 else "faster"
