"""The frame of a study's figure: a row or grid of panels over one legend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import figure, finish, grid_of_axes, legend_below, theme


@contextmanager
def panels(
    width: float, height: float, count: int = 1, columns: int = 99, share_x: bool = False, share_y: bool = False
) -> Iterator[tuple[Figure, list[Axes], dict[str, Any]]]:
    """A figure of a size in inches, its axes row by row, and what the legend names: drawn on inside a `with`."""
    with theme():
        fig = figure(width, height)
        axes, handles = grid_of_axes(fig, count, columns, share_x, share_y), dict[str, Any]()
        yield fig, axes, handles
        for ax in axes:
            finish(ax)
        legend_below(fig, handles)
