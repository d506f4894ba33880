"""One look for every figure: a decoder keeps its colour, marker and line everywhere, and greyscale tells them apart.

Text and lines are drawn in INK and backgrounds in PAPER. In the page's inline SVG the two become CSS colours, so one
rendering serves the light and the dark page.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from analysis.figures.fit import width_limit, within

MARKERS = "osD^vPX*<>"
"""Of lines that are no decoder's, in this order."""

INK = "#010203"
PAPER = "#fefdfc"
EDGE = 0.35  # opacity of INK for axes
GRID = 0.12  # and for grid lines

Dashes = str | tuple[int, tuple[float, ...]]
"""A line style of matplotlib: a name, or an offset and the lengths of dashes and gaps."""


class DecoderStyle(NamedTuple):
    """How a decoder is drawn: the colour for those who see it, marker and dashes for everybody."""

    color: str
    marker: str
    dashes: Dashes

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.color, "marker": self.marker, "ls": self.dashes}


_BLUE, _ORANGE, _GREEN, _RED, _PINK, _BROWN, _LIGHT_PINK, _GREY, _YELLOW, _SKY = seaborn.color_palette(
    "colorblind"
).as_hex()

SMALLER = 0.8
"""Of the usual size is the text of figures of a journal's width: 7 to 8 points."""

DECODERS: dict[str, DecoderStyle] = {
    "sequential": DecoderStyle(_GREY, "s", "-"),
    "ujd": DecoderStyle(_ORANGE, "^", (0, (5, 1.5))),
    "sejd": DecoderStyle(_BLUE, "o", "-"),
    "gs-jacobi": DecoderStyle(_GREEN, "D", (0, (3, 1, 1, 1))),
    "frontier": DecoderStyle(_PINK, "v", (0, (6, 1, 1, 1, 1, 1))),
    "fitted": DecoderStyle(_BROWN, "X", (0, (4, 1))),
    "auto": DecoderStyle(_RED, "*", "-"),
}
"""The decoders every reader meets; the others are styled by `_FALLBACK_COLORS` and `_FALLBACK_MARKERS`."""

_FALLBACK_COLORS = (_SKY, _YELLOW, _LIGHT_PINK, _GREEN, _RED)
_FALLBACK_MARKERS = ("P", "X", "<", ">", "h", "d", "p")
_FALLBACK_DASHES: tuple[Dashes, ...] = ((0, (4, 1)), (0, (1, 1)), (0, (4, 1, 1, 1)))


def decoder_style(decoder: str) -> DecoderStyle:
    """The style of a decoder: listed, or drawn from its name alone, so that it is the same in every report.

    >>> decoder_style("my-decoder") == decoder_style("my-decoder")
    True
    """
    if decoder in DECODERS:
        return DECODERS[decoder]
    digest = zlib.crc32(decoder.encode())
    return DecoderStyle(
        _FALLBACK_COLORS[digest % len(_FALLBACK_COLORS)],
        _FALLBACK_MARKERS[digest // 8 % len(_FALLBACK_MARKERS)],
        _FALLBACK_DASHES[digest // 64 % len(_FALLBACK_DASHES)],
    )


_SHADES = (0.0, -0.45, 0.45, -0.25, 0.25, -0.65, 0.65)
"""From a decoder's colour towards black, below 0, or white, of its variants."""
_VARIANT_MARKERS = "os^DvPX<>*phd"


def styles(frame: pd.DataFrame, names: str = "series") -> dict[str, DecoderStyle]:
    """How each of `names` is drawn: in its decoder's colour, its shade, marker and dashes by its place among the
    series of that decoder. The series called like the decoder, or alone, is drawn as `decoder_style`.
    """
    found = {}
    for decoder, rows in frame.groupby("decoder", sort=False):
        style, series = (
            decoder_style(str(decoder)),
            sorted(rows["series"].unique(), key=lambda name: (name != decoder, name)),
        )
        marks = style.marker + _VARIANT_MARKERS.replace(style.marker, "")
        for name, own in zip(rows[names], rows["series"], strict=True):
            place = series.index(own)
            shade = _SHADES[place % len(_SHADES)]
            red, green, blue = (part * (1 - abs(shade)) + max(shade, 0) for part in to_rgb(style.color))
            color = to_hex((red, green, blue))
            dashes = (style.dashes, *_FALLBACK_DASHES)[place % (1 + len(_FALLBACK_DASHES))]
            found[str(name)] = DecoderStyle(color, marks[place % len(marks)], dashes)
    return found


def shades(ordered: Sequence[Any]) -> dict[Any, str]:
    """Colours for layers or others that have an order, from dark to light, so that it survives greyscale."""
    colors = sequential_map()(np.linspace(0.3, 0.95, len(ordered)))  # the darkest would drown in a dark page
    return {value: to_hex(color) for value, color in zip(ordered, colors, strict=True)}


def layer_lines(layers: Sequence[Any]) -> dict[Any, dict[str, Any]]:
    """How each layer is drawn, as keywords of `plot`: by its shade, and by its marker for everybody."""
    return {
        layer: {"color": color, "marker": MARKERS[place % len(MARKERS)]}
        for place, (layer, color) in enumerate(shades(layers).items())
    }


def palette(count: int) -> list[str]:
    """(count,) colours that the colour-blind can tell apart, for what has no order."""
    return seaborn.color_palette("colorblind", count).as_hex()


def sequential_map() -> Colormap:
    """The colour map of heat maps: perceptually uniform, the same for the colour-blind."""
    return seaborn.color_palette("cividis", as_cmap=True)


@contextmanager
def theme() -> Iterator[None]:
    """The rc settings of every figure, none of them the user's own, for the length of a with statement.

    Fonts in PDF are TrueType, and text in SVG is text, as journals ask for.
    """
    scale = 1.0 if width_limit() is None else SMALLER
    kept = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "docstring.hardcopy")
    settings: dict[Any, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in kept}
    settings |= seaborn.axes_style("whitegrid") | seaborn.plotting_context("paper", font_scale=1.05 * scale)
    inked = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "hatch.color")
    with matplotlib.rc_context(
        settings
        | dict.fromkeys(inked, INK)
        | {
            "font.family": ["sans-serif"],
            "font.sans-serif": ["DejaVu Sans"],
            "figure.facecolor": PAPER,
            "axes.facecolor": "none",
            "axes.edgecolor": INK,
            "axes.linewidth": 0.7,
            "axes.titlesize": 9.5 * scale,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "grid.color": INK,
            "grid.alpha": GRID,
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.5,
            "lines.markersize": 5.5,
            "hatch.linewidth": 0.6,
            "legend.frameon": False,
            "legend.fontsize": 8 * scale,
            "savefig.dpi": 160,
            "svg.fonttype": "none",
            "pdf.fonttype": 42,
            "ps.fonttype": 42,
        }
    ):
        yield


def figure(width: float, height: float, scaled: bool = False) -> Figure:
    """An empty figure of a size in inches, laid out so that nothing overlaps. Call it inside `theme`.

    A limited width makes it less high too where it is `scaled`, as images are.
    """
    limit = width_limit() or width
    return Figure(figsize=(limit, height * limit / width if scaled else height), layout="constrained")


def grid_of_axes(fig: Figure, count: int, columns: int, share_x: bool = False, share_y: bool = False) -> list[Axes]:
    """The first `count` axes of a grid filled row by row; the rest are not there."""
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    axes: list[Axes] = fig.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y).flatten().tolist()
    for unused in axes[count:]:
        unused.remove()
    return axes[:count]


def finish(ax: Axes) -> None:
    """Axes without a box, left and bottom spines only, and with two ticks at least where they are logarithmic."""
    seaborn.despine(ax=ax)
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        if axis.get_scale() == "log" and sum(low <= tick <= high for tick in axis.get_majorticklocs()) < 2:
            ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
            axis.set_ticks([tick for tick in ticks if low <= tick <= high and tick > 0])
            axis.set_minor_formatter(NullFormatter())
            if not isinstance(axis.get_major_formatter(), FuncFormatter):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for spine in ax.spines.values():
        spine.set_alpha(EDGE)
    ax.tick_params(length=0)


def log_axis(axis: Axis, ticks: Sequence[float] | None = None, base: float = 10, unit: str = "") -> None:
    """A logarithmic axis told in plain numbers, at these ticks or at powers of the base."""
    ax = axis.axes
    (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log", base=base)
    if ticks is not None:
        axis.set_ticks(ticks)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axis.set_minor_formatter(NullFormatter())


def lines_against_tau(ax: Axes, rows: pd.DataFrame, column: str, handles: dict[str, Any], band: float = 0) -> None:
    """A line per series, tau on a logarithmic axis; `low` to `high` shaded where `band` is its opacity."""
    looks, rows = styles(rows), rows[rows["tau"] > 0]
    for series, part in rows.groupby("series", sort=False):
        style, part = looks[str(series)], part.sort_values("tau")
        (handles[str(series)],) = ax.plot(part["tau"], part[column], **style.line)
        if band:
            part = part.dropna(subset=["low"])
            ax.fill_between(part["tau"], part["low"], part["high"], color=style.color, alpha=band, lw=0)
    log_axis(ax.xaxis, sorted(rows["tau"].unique()))


def columns_for(panels: int) -> int:
    """Columns of a grid that so many panels fill well."""
    return within(3 if panels in (3, 5, 6, 9) else min(4, panels))


@contextmanager
def panels(
    width: float, height: float, count: int = 1, columns: int = 99, share_x: bool = False, share_y: bool = False
) -> Iterator[tuple[Figure, list[Axes], dict[str, Any]]]:
    """A figure of a size in inches, its axes row by row, and what the legend names: drawn on inside a `with`."""
    columns, natural = within(min(columns, count)), min(columns, count)
    with theme():
        fig = figure(width, height * -(-count // columns) / -(-count // natural))
        axes, handles = grid_of_axes(fig, count, columns, share_x, share_y), dict[str, Any]()
        yield fig, axes, handles
        for ax in axes:
            finish(ax)
        add_legend(fig, handles)


@contextmanager
def panels_by_layer(
    layers: Sequence[int], height: float, xlabel: str, ylabel: str
) -> Iterator[tuple[Figure, list[Axes], dict[str, Any]]]:
    """As `panels`, a panel per layer with common axes, labelled at the rim."""
    count, columns = len(layers), columns_for(len(layers))
    width, height = max(4.8, 2.9 * columns), height * -(-count // columns) + height - 1.9
    with panels(width, height, count, columns, share_x=True, share_y=True) as (fig, axes, handles):
        for place, (ax, layer) in enumerate(zip(axes, layers, strict=True)):
            lowest = place + columns >= count
            ax.set(title=f"layer {layer}", xlabel=xlabel if lowest else "", ylabel="" if place % columns else ylabel)
            ax.tick_params(labelbottom=lowest)
        yield fig, axes, handles


LINE = 0.17
"""Inches of a legend's line."""


def add_legend(fig: Figure, handles: Mapping[str, Any]) -> None:
    """One legend for the whole figure, label to what was drawn: beside it where it is as tall, else under it.

    The figure grows by what the legend takes, but for a width that is `limited`.
    """
    if not handles:
        return
    scale = 1.0 if width_limit() is None else SMALLER
    width = (0.5 + 0.068 * max(map(len, handles))) * scale
    if beside := LINE * len(handles) < fig.get_figheight() - 0.4 and width_limit() is None:
        fig.set_figwidth(fig.get_figwidth() + width)
    columns = 1 if beside else max(1, min(len(handles), int(fig.get_figwidth() / width)))
    if not beside:
        fig.set_figheight(fig.get_figheight() + LINE * (-(-len(handles) // columns) - 1))
    legend = fig.legend(
        list(handles.values()),
        [str(number) for number in range(len(handles))],
        loc="outside right center" if beside else "outside lower center",
        ncols=columns,
    )
    for text, name in zip(legend.get_texts(), handles, strict=True):
        text.set_text(name)  # one given above is left out where it begins with "_"
