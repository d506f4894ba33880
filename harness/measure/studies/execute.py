"""Everything that a plan needs, measured: one run folder per matrix or probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.measure.probes.probe import build_probe
from harness.measure.run_matrix import run_matrix
from harness.measure.run_probe import run_probe
from harness.measure.studies.plan import StudyPlan
from harness.progress import Reporter


def execute(
    plan: StudyPlan,
    profile: str,
    out: Path,
    reporter: Callable[[], Reporter],
    *,
    resume: bool = False,
    data_root: str | None = None,
) -> Path:
    """Measure what a study needs, or what a killed run has left of it.

    Args:
        out: the folder of all studies; this one's runs go to ``out/STUDY/RUN``.
        reporter: makes what is told of every unit, once for each run.
        resume: continue what is there.

    Returns:
        The study's folder, which holds its run folders.

    Raises:
        HarnessError: a mistake in the plan, found before anything is measured, or what `run_matrix` and
            `run_probe` raise.
    """
    folder = out / plan.name
    matrices = {run.name: run.parse(profile) for run in plan.run}
    probes = {run.name: (build_probe(run.probe, **run.settings(profile)), run.flow) for run in plan.probe}
    for name, matrix in matrices.items():
        progress = reporter()
        progress.note(f"study {plan.name}, run {name}")
        run_matrix(matrix, folder / name, progress, resume=resume, threads=plan.threads, data_root=data_root)
    for name, (probe, flow) in probes.items():
        progress = reporter()
        progress.note(f"study {plan.name}, probe {name}")
        run_probe(probe, flow, folder / name, progress, resume=resume, threads=plan.threads, data_root=data_root)
    return folder
