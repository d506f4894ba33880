"""`harness study`: measure what is missing, write the texts, say what no longer is as stored."""

from __future__ import annotations

import sys
from pathlib import Path

from analysis.studies.render import render_study, require_text
from analysis.studies.stored import FLOAT32, OF_COLUMN, OF_ITSELF, ROUNDED, Comparison, store_took, took
from harness.measure.planning import plan_study
from harness.measure.studies import execute, plans
from harness.progress import reporter
from harness.runs.store import MANIFEST, read_run


def run_studies(
    name: str, profile: str, out: Path, results: Path, resume: bool, check: bool, data_root: Path | None,
    threads: int | None = None, dry_run: bool = False,
) -> int:  # fmt: skip
    """Run a study, by its name or folder, those it reads first, or ``"all"``.

    Returns 1 where `check` found a deterministic table that differs from the stored one, else 0. Raises HarnessError: a
    mistake in a plan or text, or a folder that cannot be used.
    """
    compared, wanted = Comparison(), plans(name)
    root = str(data_root) if data_root else None
    for plan in wanted:
        require_text(plan.folder)
    if dry_run:
        for plan in wanted:
            print("\n".join(map(str, plan_study(plan, profile, out, resume, root, took(plan.name, [results])))))
        return 0
    for plan in wanted:
        execute(plan, profile, out, reporter, resume=resume, data_root=root, threads=threads)
        measured = [out / one for one in (*plan.reads, plan.name) if any((out / one).rglob(MANIFEST))]
        staging = out / "rendered" / plan.name
        absent = {name for one in wanted if one.name in (*plan.reads, plan.name) for name in one.absent(profile, root)}
        found = render_study(plan.folder, plan.title, profile, measured, staging, results, check, sorted(absent))
        compared += found
        if not found.kept:
            runs = [read_run(path.parent) for path in sorted((out / plan.name).rglob(MANIFEST))]
            store_took(results / plan.name, profile, runs)
            print(results / f"{plan.name}.md")
    for sentence in (*compared.kept, *compared.differing):
        print(sentence, file=sys.stderr)
    if check and not compared.differing:
        rounding = (
            f"; {len(compared.rounded)} of them up to rounding, as on another kind of processor: each number within "
            f"{OF_ITSELF:g} of itself, {OF_COLUMN:g} of its column's largest or {FLOAT32:g}, each count the same, and "
            f"what rounding alone decides (*{ROUNDED}) not compared"
        )
        of = ", of the flows that are here," if compared.kept else ""
        said = f"every deterministic table of {name}{of} is as stored in '{results}'"
        print(said + (rounding if compared.rounded else ""))
    return 1 if compared.differing else 0
