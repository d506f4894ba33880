"""Studies: the paper's claims and open questions; CONTRIBUTING.md says how one is made."""

from harness.measure.studies.execute import execute
from harness.measure.studies.plan import PROFILES, StudyPlan, load_plan, plans, studies

__all__ = ["PROFILES", "StudyPlan", "execute", "load_plan", "plans", "studies"]
