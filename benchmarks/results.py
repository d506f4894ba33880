"""`make results`: everything that is stored under results/, measured again by one version of the code, in stages.

A stage measures below runs/results/ with the commands that a user would give, each with --resume, and stores what they
made when all of them are done: killed at any moment, the same command goes on and measures nothing twice.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import click

from analysis import fastest, readme
from analysis.studies.stored import took
from harness.cli.face import parsed_matrix
from harness.errors import CheckpointError, HarnessError, StoreError, unknown
from harness.files import LOCK
from harness.flows.checkpoints import checkpoint_path, digest
from harness.measure.planning import Plan, plan_matrix, plan_study
from harness.measure.probes.probe import probes
from harness.measure.studies import plans
from harness.runs.baselines import save_baseline
from harness.runs.environment import code_version, source_version
from harness.runs.store import MANIFEST, read_run

WORK, RESULTS, README = Path("runs/results"), Path("results"), Path("README.md")
RUNS = {
    "runs": {"digits": ("quickstart", None), "cifar10": ("cifar10", "fast"), "afhq": ("afhq", "fast")},
    "fastest": {"fastest": ("fastest", None), "fastest-paper": ("fastest", "paper")},
}
"""By stage, matrix and profile of every run folder."""
NEEDS = {"fastest-paper": "cifar10-paper"}
"""Runs of a flow that is not shipped: left out where there is none."""
BASELINES = {"digits-cpu": "digits", "cifar10-cpu": "cifar10", "afhq-cpu": "afhq"}
STAGES = (*RUNS, "studies", "texts")
PROFILE = "fast"


def present(stage: str) -> dict[str, tuple[str, str | None]]:
    """The runs of a stage whose flows are there."""
    return {name: one for name, one in RUNS[stage].items() if name not in NEEDS or _digest(NEEDS[name])}


def planned(stage: str) -> Iterator[Plan]:
    """What a stage would measure, run by run; with the time of each where a stored run tells."""
    for name, (matrix, profile) in present(stage).items() if stage in RUNS else ():
        yield plan_matrix(parsed_matrix(matrix, profile, (), None, None, None), WORK / name, resume=True)
    for study in plans("all") if stage == "studies" else ():
        known = took(study.name, [RESULTS / "studies"])
        whole, *parts = plan_study(study, PROFILE, WORK / "studies", True, None, known)
        yield from [whole] if whole.seconds is not None else parts


def tell(stages: tuple[str, ...]) -> None:
    """Print what is to be done stage by stage, and about how long all of it takes."""
    seconds, unknown_ = 0.0, 0
    for stage in stages:
        found = list(planned(stage))
        own = sum(plan.seconds or 0.0 for plan in found)
        seconds, unknown_ = seconds + own, unknown_ + sum(plan.seconds is None or bool(plan.untimed) for plan in found)
        print(f"stage {stage}: {len(found)} runs, about {own / 60:.0f} min" if found else f"stage {stage}: no run")
        for plan in found:
            print(f"  {str(plan).replace(chr(10), f'{chr(10)}  ')}")
    left_out = f"; of {unknown_} runs no stored time tells all" if unknown_ else ""
    print(f"altogether about {seconds / 60:.0f} min{left_out}", flush=True)


def require_same_code(work: Path) -> None:
    """Raises StoreError: a run in this folder was measured by other code than this, or from another checkpoint."""
    for folder in sorted(path.parent for path in work.rglob(MANIFEST)):
        tables = {name: read_run(folder).table(name).to_dict("records") for name in ("cells", "probes")}
        now = [(row, code_version()) for row in tables["cells"]]
        now += [(row, source_version(probes.get(row["probe"]))) for row in tables["probes"]]
        for row, code in now:
            same = _digest(row["checkpoint"]) in (None, row["checkpoint_digest"]) or not row["checkpoint_digest"]
            if row["code_version"] != code or not same:
                what = "by other code" if same else f"from another checkpoint '{row['checkpoint']}'"
                raise StoreError(
                    f"'{folder}' was measured {what}, and results of two versions are not mixed; remove '{folder}', or "
                    f"all of '{work}', and it is measured again"
                )


@cache
def _digest(flow: str) -> str | None:
    """Of the file of a flow by name; None where there is none, as of those that studies name by their path."""
    try:
        return digest(checkpoint_path(flow))
    except CheckpointError:
        return None


def harness(*arguments: str | Path) -> None:
    """One command. Raises HarnessError: it did not end well; what it has measured is kept."""
    done = subprocess.run([sys.executable, "-m", "harness", *map(str, arguments)])
    if done.returncode:
        command = " ".join(map(str, arguments))
        raise HarnessError(f"'harness {command}' ended with {done.returncode}; the same again goes on from there")


def measure(stage: str, run: Callable[..., None] = harness) -> None:
    """Do a stage, and store what it made."""
    if stage == "texts":
        shutil.rmtree(RESULTS / "figures", ignore_errors=True)
        run("report", RESULTS / "runs", "--out", RESULTS)
        print(fastest.write(sorted((RESULTS / "runs").glob("fastest*")), RESULTS / "fastest.md"))
        print(readme.write(README, RESULTS))
    elif stage == "studies":
        run("study", "all", "--profile", PROFILE, "--out", WORK / "studies", "--results", RESULTS / "studies",
            "--resume")  # fmt: skip
    else:
        extra = ["--workers", 2] if stage == "fastest" else []  # what is timed is alone all the same
        for name, (matrix, profile) in present(stage).items():
            run("run", matrix, *(["--profile", profile] if profile else []), "--out", WORK / name, "--resume", *extra)
        for name in present(stage):
            target = RESULTS / "runs" / name
            shutil.rmtree(target, ignore_errors=True)
            left = [LOCK, *(["samples"] if stage == "fastest" else [])]  # its grids of every cell are 40 MB
            shutil.copytree(WORK / name, target, ignore=shutil.ignore_patterns(*left))
        for name, source in BASELINES.items() if stage == "runs" else ():
            print(save_baseline(RESULTS / "runs" / source, name, RESULTS / "baselines", replace=True))


@click.command()
@click.argument("stages", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Only say what would be measured and about how long it takes.")
def main(stages: tuple[str, ...], dry_run: bool) -> None:
    """Measure STAGES, by default all of them: runs, fastest, studies, texts."""
    try:
        for stage in stages:
            if stage not in STAGES:
                raise unknown("stage", stage, STAGES)
        chosen = tuple(stage for stage in STAGES if not stages or stage in stages)
        require_same_code(WORK)
        if any(stage != "texts" for stage in chosen):
            tell(chosen)
        for stage in () if dry_run else chosen:
            measure(stage)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
