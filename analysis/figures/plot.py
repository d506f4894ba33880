"""What a figure is here: a data frame, a way to draw it, and a sentence computed from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.fit import drawable
from analysis.load import Runs


class Omitted(Exception):
    """A figure that these runs cannot show; the message is the reason, and the page prints it."""


@dataclass(frozen=True)
class Plot:
    """A figure family, drawn once for every `flow` of its frame."""

    name: str  # file stem
    title: str  # heading on the page
    reading: str  # how to read it: axes, marks, what was done to the numbers
    data: Callable[[Runs], pd.DataFrame]  # exactly what is drawn, written beside the figure as CSV; raises `Omitted`
    draw: Callable[[pd.DataFrame], Figure]  # one flow's rows
    finding: Callable[[pd.DataFrame], str]  # a sentence that says what these rows show

    def figure(self, frame: pd.DataFrame) -> Figure:
        """One flow's rows drawn, whatever its names are made of."""
        return self.draw(drawable(frame))


@dataclass(frozen=True)
class Table:
    """A table of the page: like a `Plot` that is not drawn."""

    name: str
    title: str
    reading: str
    data: Callable[[Runs], pd.DataFrame]
    finding: Callable[[pd.DataFrame], str]
    headings: Mapping[str, str] = field(default_factory=dict)  # column to heading; by default all under their names
    formats: Mapping[str, Callable[[pd.DataFrame], str]] = field(default_factory=dict)  # by suffix, besides CSV


def require(frame: pd.DataFrame, reason: str) -> pd.DataFrame:
    """The frame itself; `Omitted` for this reason where it has no rows."""
    if frame.empty:
        raise Omitted(reason)
    return frame
