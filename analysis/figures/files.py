"""Figures and frames as files: the same numbers give the same bytes."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.figures.fit import keep_apart, wrap
from analysis.figures.style import INK, PAPER, theme


def data_columns(frame: pd.DataFrame) -> list[str]:
    """The columns to be written; those that begin with "_" only say where something lies."""
    return [str(column) for column in frame if not str(column).startswith("_")]


def write_csv(frame: pd.DataFrame, path: Path) -> str:
    """Write a frame, always the same bytes for the same numbers, and return the file's name."""
    frame[data_columns(frame)].to_csv(path, index=False, float_format="%.8g", lineterminator="\n")
    return path.name


def settle(drawn: Figure) -> None:
    """Lay a figure out once, instead of once for every file written from it, and keep its labels apart."""
    with theme():
        renderer = FigureCanvasAgg(drawn).get_renderer()
        drawn.draw_without_rendering()
        wrap(drawn, renderer)
        drawn.draw_without_rendering()
        drawn.set_layout_engine(None)  # "none" would have every file drawn twice
        keep_apart(drawn, renderer)


def save(drawn: Figure, path: Path, salt: str) -> None:
    """Write a figure; the same figure gives the same bytes."""
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with theme(), matplotlib.rc_context({"svg.hashsalt": salt}):
        drawn.savefig(path, metadata=dated.get(path.suffix[1:]))


def inline_svg(drawn: Figure, name: str, title: str) -> str:
    """A figure as an SVG element for a page: ids of its own, text and background in the page's colours."""
    buffer = io.StringIO()
    with theme(), matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="none", transparent=False)
    text = "<svg" + buffer.getvalue().partition("<svg")[2]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    opening = r'<svg\b[^>]*?viewBox="([^"]+)"[^>]*>'
    of_page = (
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" '
        rf'role="img" aria-label="{escape(title)}">'
    )
    return re.sub(opening, of_page, text, count=1, flags=re.DOTALL)


def slug(text: str) -> str:
    """A value as part of a file name; what it is made of may be shared by others.

    >>> slug("digits, batch 16")
    'digits-batch-16'
    """
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
