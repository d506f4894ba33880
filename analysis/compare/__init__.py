"""A run against a stored one: for every cell, is it faster, slower, the same, or no longer right?

Cells are joined on `cell_key`. Times are compared as ratios within each run's own rounds, of those that had a quiet
machine, and only within one environment. Costs that need no clock are compared exactly, whatever the machine.
"""

from analysis.compare.runs import TOLERANCE, CellVerdict, compare_runs
from analysis.compare.verdicts import VERDICTS, Comparison, Verdict

__all__ = ["TOLERANCE", "VERDICTS", "CellVerdict", "Comparison", "Verdict", "compare_runs"]
