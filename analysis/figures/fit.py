"""What fits into a figure: the width it may have, names as they can be drawn, and labels that stay apart."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

WIDTHS = {"column": 3.4, "page": 7.0}
"""Inches between the margins of a journal's column and page."""
_WIDTH: ContextVar[float | None] = ContextVar("width", default=None)
NARROWEST = 1.6
"""Inches that a panel needs."""
POINT = 4.0
"""Half the side of a drawn point, in pixels of the layout."""
MOST_LETTERS = 44
"""Of a name in a figure; in one as wide as a column, half of them."""


@contextmanager
def limited(width: float | None) -> Iterator[None]:
    """Within a with statement every figure is as wide as this, in inches; None for its own width."""
    token = _WIDTH.set(width)
    try:
        yield
    finally:
        _WIDTH.reset(token)


def width_limit() -> float | None:
    """What `limited` says."""
    return _WIDTH.get()


def within(columns: int) -> int:
    """So many columns of panels, or as many as there is width for."""
    limit = _WIDTH.get()
    return columns if limit is None else max(1, min(columns, int(limit / NARROWEST)))


def drawable(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with names that can be drawn: `shown`, and each as long as there is room for."""
    names = [name for name in ("flow", "series", "title", "initial", "checkpoint") if name in frame]
    return frame.assign(**{name: frame[name].map(shown(frame[name].dropna().unique())) for name in names})


def shown(names: Collection[str]) -> dict[str, str]:
    """Each name as it is drawn, no two alike: no formula, no glyph that the font lacks, and as long as is room for.

    >>> shown(["a$b$"])
    {'a$b$': 'a\\\\$b\\\\$'}
    """
    limit = _WIDTH.get()
    most = MOST_LETTERS if limit is None or limit > WIDTHS["column"] else MOST_LETTERS // 2
    found: dict[str, str] = {}
    for name in map(str, names):
        text = "".join(letter if _glyph(letter) else f"U+{ord(letter):04X}" for letter in " ".join(name.split()))
        short, count = text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}", 2
        while short in found.values():
            short, count = f"{short.rsplit(' #', 1)[0]} #{count}", count + 1
        found[name] = short
    return {name: text.replace("$", r"\$") for name, text in found.items()}


@cache
def _glyph(letter: str) -> bool:
    return bool(get_font(findfont("DejaVu Sans")).get_char_index(ord(letter)))


def wrap(drawn: Figure, renderer: RendererBase) -> None:
    """Break titles and labels that are longer than their axes into lines."""
    for ax in drawn.axes:
        box = ax.get_window_extent(renderer)
        titles = [one for one in ax.get_children() if isinstance(one, Text) and one not in ax.texts and one.get_text()]
        for text in (*titles, ax.xaxis.label, ax.yaxis.label):
            room = box.height if text is ax.yaxis.label else box.width
            own = text.get_window_extent(renderer)
            if (share := room / max(own.width, own.height, 1)) < 1:
                text.set_text(fill(text.get_text(), max(8, int(share * len(text.get_text())))))


def keep_apart(drawn: Figure, renderer: RendererBase) -> None:
    """Of labels that overlap, or lie on what another names, move those beside points up or down, and leave out what
    still does; so too of ticks.
    """
    for ax in drawn.axes:
        named = {text: _point(ax, text) for text in ax.texts if isinstance(text, Annotation)}
        placed: list[Bbox] = []
        for text in ax.texts:
            if isinstance(text, Annotation):
                taken = placed + [point for other, point in named.items() if other is not text]
                x, y = map(float, text.get_position())
                steps = (step * sign * float(text.get_fontsize()) for step in (1, 2, 3) for sign in (1, -1))
                text.set_visible(any(_moved(text, (x, y + step), taken, renderer) for step in (0.0, *steps)))
            if text.get_visible():
                placed.append(text.get_window_extent(renderer))
        for axis in (ax.xaxis, ax.yaxis):
            _thin([tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_visible()], renderer)


def _point(ax: Axes, text: Annotation) -> Bbox:
    x, y = ax.transData.transform(text.xy)
    return Bbox.from_extents(x - POINT, y - POINT, x + POINT, y + POINT)


def _moved(text: Annotation, place: tuple[float, float], taken: list[Bbox], renderer: RendererBase) -> bool:
    text.set_position(place)
    return _free(text, taken, renderer)


def _free(text: Text, taken: list[Bbox], renderer: RendererBase) -> bool:
    own = text.get_window_extent(renderer)
    return not any(own.overlaps(other) for other in taken)


def _thin(labels: list[Text], renderer: RendererBase) -> None:
    taken: list[Bbox] = []
    for label in labels:
        if label.get_text():
            label.set_visible(_free(label, taken, renderer))
            taken += [label.get_window_extent(renderer)] if label.get_visible() else []
