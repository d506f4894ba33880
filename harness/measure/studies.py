"""Studies: the paper's claims and open questions; CONTRIBUTING.md says how one is made."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from harness.errors import HarnessError, unknown
from harness.measure.matrix import DatasetTable, Matrix, build_matrix, matrix_path, merged, read_toml
from harness.measure.probes.probe import Probe, build_probe
from harness.measure.run_matrix import run_matrix
from harness.measure.run_probe import run_probe
from harness.measure.sources import source_of
from harness.options import Processes, Table, sentence
from harness.progress import Reporter

SHIPPED = Path(str(files("analysis"))) / "studies"
PROFILES = ("fast", "full")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


MatrixWork = tuple[str, Matrix]
"""A run folder, and the matrix that is measured into it."""
ProbeWork = tuple[str, str, Probe, str]
"""A run folder, a probe by name and with its options, and the flow it is run on."""


class MatrixRun(Table):
    """A run of a matrix.

    `matrix` is either the matrix itself, its `profiles` included, or the name of a shipped one (or a path ending in
    .toml) whose keys `set` overrides. `profiles` override both, by the name of the study's profile.
    """

    name: Name
    matrix: str | dict[str, Any]
    set: dict[str, Any] = {}
    profiles: dict[str, dict[str, Any]] = {}

    def parse(self, profile: str) -> Matrix:
        """The matrix under a profile of the study. Raises HarnessError: a mistake in it; the sentence names the key."""
        raw = read_toml(matrix_path(self.matrix)) if isinstance(self.matrix, str) else dict(self.matrix)
        inner = raw.pop("profiles", {})
        over = inner.get(profile, {}) if isinstance(self.matrix, dict) and isinstance(inner, dict) else {}
        tables = merged(merged(merged({"name": self.name} | raw, over), self.set), self.profiles.get(profile, {}))
        return build_matrix(tables, f"run '{self.name}'")


class ProbeRun(Table):
    """Runs of a probe: their name, one flow or several, and the probe's options, which `profiles` override.

    With `optional`, as with that of a matrix's dataset, a flow whose checkpoint is not there is left out.
    """

    name: Name
    probe: str
    flow: str | list[str]
    optional: bool = False
    options: dict[str, Any] = {}
    profiles: dict[str, dict[str, Any]] = {}

    @property
    def flows(self) -> list[tuple[str, str]]:
        """Run folders with the flow of each; those of several flows are named after theirs besides."""
        if isinstance(self.flow, str):
            return [(self.name, self.flow)]
        return [(f"{self.name}-{Path(flow).name.removesuffix('.safetensors')}", flow) for flow in self.flow]

    def settings(self, profile: str) -> dict[str, Any]:
        return merged(self.options, self.profiles.get(profile, {}))


class StudyPlan(Table):
    """A plan file.

    Args:
        threads: of torch on the CPU: part of the plan, since sums in another order end in other digits.
    """

    name: Name
    folder: Path  # where the plan lies, with the study's text and findings
    title: str  # heading of the text and of the list of studies
    reads: list[Name] = []  # other studies whose runs this one's text rests on too; they are run before it
    threads: Processes = 2
    run: list[MatrixRun] = []  # matrices
    probe: list[ProbeRun] = []  # probes

    @field_validator("reads")
    @classmethod
    def _there(cls, reads: list[str]) -> list[str]:
        for name in reads:
            if name not in studies():
                raise ValueError(f"names {unknown('study', name, studies())}")
        return reads

    @model_validator(mode="after")
    def _sound(self) -> Self:
        runs: list[MatrixRun | ProbeRun] = [*self.run, *self.probe]
        names = [*(run.name for run in self.run), *(name for run in self.probe for name, _ in run.flows)]
        if shared := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"has two runs named '{min(shared)}'; they would share a folder")
        for run in runs:
            for profile in run.profiles:
                if profile not in PROFILES:
                    raise ValueError(f"run '{run.name}' has {unknown('profile', profile, PROFILES)}")
        return self

    def absent(self, profile: str, data_root: str | None = None) -> dict[str, str]:
        """Optional flows whose checkpoint is not there, with a sentence that says so."""
        tables = [dataset for run in self.run for dataset in run.parse(profile).datasets if dataset.optional]
        flows = [flow for run in self.probe if run.optional for _, flow in run.flows]
        tables += [DatasetTable(name=flow, checkpoint=flow, optional=True) for flow in flows]
        sources = [source_of(table, data_root) for table in tables]
        return {source.name: source.absent for source in sources if source.absent}

    def work(self, profile: str, absent: Collection[str] = ()) -> tuple[list[MatrixWork], list[ProbeWork]]:
        """What is to be measured under a profile without the optional flows that are `absent`."""
        matrices, probes = list[MatrixWork](), list[ProbeWork]()
        for run in self.run:
            matrix = run.parse(profile)
            there = [one for one in matrix.datasets if not (one.optional and (one.checkpoint or one.name) in absent)]
            if there:
                matrices.append((run.name, matrix.model_copy(update={"datasets": there})))
        for one in self.probe:
            probe = build_probe(one.probe, **one.settings(profile))
            flows = [(name, flow) for name, flow in one.flows if not (one.optional and flow in absent)]
            probes += [(name, one.probe, probe, flow) for name, flow in flows]
        return matrices, probes


def studies() -> dict[str, Path]:
    """The plan files by study."""
    return {path.parent.name.replace("_", "-"): path for path in sorted(SHIPPED.glob("*/plan.toml"))}


def load_plan(name: str) -> StudyPlan:
    """Read and validate the plan of a shipped study, by its name, or of another one, by its folder.

    Raises HarnessError: no such study, or a mistake in its plan.
    """
    known = studies()
    path = known.get(name, Path(name) / "plan.toml")
    if not path.is_file():
        raise unknown("study", name, [*known, "all"])
    own = {"name": path.resolve().parent.name.replace("_", "-"), "folder": path.parent}
    try:
        return StudyPlan.model_validate(read_toml(path) | own)
    except ValidationError as error:
        raise HarnessError(f"'{path}': {sentence(error, 'the plan')}") from error


def plans(name: str) -> list[StudyPlan]:
    """The plans of a study, see `load_plan`, and of those it reads, or of ``"all"``: what is read comes first.

    Raises HarnessError: no such study, a mistake in a plan, or plans that read each other in a circle.
    """
    found: dict[str, StudyPlan] = {}

    def add(one: str, above: tuple[str, ...]) -> None:
        if one in above:
            raise HarnessError(f"the studies {' -> '.join([*above, one])} read each other in a circle")
        if one not in found:
            plan = load_plan(one)
            for other in plan.reads:
                add(other, (*above, one))
            found[one] = plan

    for one in studies() if name == "all" else [name]:
        add(one, ())
    return list(found.values())


def execute(
    plan: StudyPlan,
    profile: str,
    out: Path,
    reporter: Callable[[], Reporter],
    *,
    resume: bool = False,
    data_root: str | None = None,
    threads: int | None = None,
) -> Path:
    """Measure what a study needs, or what a killed run has left of it; flows that are `absent` are told and left out.

    Returns the study's folder, which holds its run folders. Raises HarnessError: a mistake in the plan, found before
    anything is measured, or what `run_matrix` and `run_probe` raise.

    Args:
        out: the folder of all studies; this one's runs go to ``out/STUDY/RUN``.
        reporter: makes what is told of every unit, once for each run.
        resume: continue what is there.
        threads: in place of the plan's.
    """
    folder = out / plan.name
    absent = plan.absent(profile, data_root)
    matrices, probes = plan.work(profile, absent)
    shared: dict[str, Any] = {"resume": resume, "threads": threads or plan.threads, "data_root": data_root}
    for why in absent.values():
        reporter().note(f"study {plan.name} does without an optional flow: {why}")
    for name, matrix in matrices:
        progress = reporter()
        progress.note(f"study {plan.name}, run {name}")
        run_matrix(matrix, folder / name, progress, **shared)
    for name, _, probe, flow in probes:
        progress = reporter()
        progress.note(f"study {plan.name}, probe {name}")
        run_probe(probe, flow, folder / name, progress, **shared)
    return folder
