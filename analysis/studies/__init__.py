"""The written answers of the studies; see `harness.measure.studies` for how one is made."""

from analysis.studies.base import Finding, Findings

__all__ = ["Finding", "Findings"]
