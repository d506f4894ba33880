"""The written answers of the studies; CONTRIBUTING.md says how one is made."""

from analysis.studies.base import Finding, Findings

__all__ = ["Finding", "Findings"]
