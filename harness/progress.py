"""How a run tells where it is: a bar with the remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 5.0
"""Plain lines are at least this far apart, except the first of a pass."""


class Reporter(Protocol):
    """Told of every unit of work; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def begin(self, total: float) -> None:
        """The cost of all units of the stage to come, in any unit; what was before it counts no more."""
        ...

    def unit(self, work: str, title: str) -> None:
        """A unit starts."""
        ...

    def advance(self, cost: float) -> None:
        """It ended."""
        ...

    def note(self, sentence: str) -> None: ...


def reporter() -> Reporter:
    """A bar on a terminal, else lines; both on stderr."""
    return BarReporter() if sys.stderr.isatty() else LineReporter()


class Silent:
    """Shows nothing but what there is to note, which it hands on."""

    def __init__(self, note: Callable[[str], object] = lambda sentence: None) -> None:
        self._note = note

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def begin(self, total: float) -> None:
        pass

    def unit(self, work: str, title: str) -> None:
        pass

    def advance(self, cost: float) -> None:
        pass

    def note(self, sentence: str) -> None:
        self._note(sentence)


SILENT = Silent()


class BarReporter:
    """A rich progress bar."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.fields[work]:>9}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            speed_estimate_period=120.0,
            refresh_per_second=2,  # a thread that draws takes time from what is measured
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, work="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def begin(self, total: float) -> None:
        self._progress.reset(self._task, total=total)

    def unit(self, work: str, title: str) -> None:
        self._progress.update(self._task, description=title, work=work)

    def advance(self, cost: float) -> None:
        self._progress.advance(self._task, cost)

    def note(self, sentence: str) -> None:
        self._progress.console.print(sentence, markup=False, highlight=False)


class LineReporter(Silent):
    """A line per pass, and one every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._total, self._done = 0.0, 0.0
        self._start = self._last = time.monotonic()
        self._work = ""

    def begin(self, total: float) -> None:
        self._total, self._done, self._start = total, 0.0, time.monotonic()

    def unit(self, work: str, title: str) -> None:
        now = time.monotonic()
        if work != self._work or now - self._last >= LINE_EVERY_S:
            self._work, self._last = work, now
            share = self._done / self._total if self._total else 1.0
            left = f", about {(now - self._start) * (1 - share) / share:.0f} s left" if share > 0.02 else ""
            self.note(f"{share:4.0%}  {work}: {title}{left}")

    def advance(self, cost: float) -> None:
        self._done += cost

    def note(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)
