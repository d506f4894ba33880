"""Everything that some runs show, as figures, tables and one page."""

from analysis.report.page import build

__all__ = ["build"]
