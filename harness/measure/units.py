"""The words of the engine: a unit of work, the task it belongs to, what it is measured with, how a failure is a row."""

from __future__ import annotations

import gc
import io
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from harness.datasets.images import image_grid
from harness.decoders import Decoder, DecodeResult
from harness.decoders.exact import ExactBatch
from harness.errors import NonFiniteError, because
from harness.flows import CausalFlow
from harness.flows.latents import cycling_labels, indexed_latents
from harness.flows.protocols import Denoises
from harness.measure.cells import Cell, Subject
from harness.registry import settings_kept
from harness.runs.store import RunStore
from harness.runs.tables import Rows

T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """The least piece of work: its rows are stored together, and a killed run loses at most one per worker.

    Args:
        key: columns whose values tell this unit's rows from those of the task's other units.
        inputs: files of the run folder whose content the measuring process needs, see `Bench.inputs`.
    """

    title: str  # what progress shows
    subjects: tuple[Any, ...]  # what is measured: cells of one group, or the one flow of a probe
    cost: float = 1.0  # relative to the other units, for the estimate of the remaining time alone
    key: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[str, ...] = ()  # that it writes; it is done when each has a row of every subject with this key
    indices: range | None = None  # global indices of the samples that are measured, where a cell's are split
    inputs: tuple[str, ...] = ()


class Task(Protocol):
    """One kind of measurement: plain settings, so that it travels to where it measures."""

    @property
    def name(self) -> str:
        """What it measures."""
        ...

    @property
    def exclusive(self) -> bool:
        """Whether nothing else may run on the device meanwhile."""
        ...

    def together(self, unit: Unit) -> Hashable:
        """Units with equal keys are measured one after the other by one process."""
        ...

    def measure(self, unit: Unit, bench: Bench) -> Mapping[str, Rows]:
        """Rows by table; runs in a process without the store."""
        ...


class CellTask:
    """A task with one unit per cell, whose table has its name; cells of one group, which share the flow, go together.

    `cost` is that of a cell, relative to other tasks.
    """

    name: ClassVar[str]
    cost: ClassVar[float]
    exclusive: ClassVar[bool] = False

    def units(self, cells: Sequence[Cell]) -> list[Unit]:
        return [
            Unit(f"{cell.flow}, {cell.title}", (cell,), self.cost * (1 + cell.batch_size / 16), tables=(self.name,))
            for cell in cells
        ]

    def together(self, unit: Unit) -> Hashable:
        return unit.subjects[0].group_id


class Work(NamedTuple):
    """A task, and a function that finds the units whose rows are not there yet."""

    task: Task
    missing: Callable[[], Sequence[Unit]]


def missing(units: Sequence[Unit], store: RunStore, task: str) -> list[Unit]:
    """The units that have no rows yet: neither in their tables nor among the failures of their task."""
    failures = store.read("failures")
    failed = set(zip(failures["cell_id"], failures["pass"], strict=True))
    kinds = {(table, tuple(unit.key)) for unit in units for table in unit.tables}
    stored = {kind: _stored(store, *kind) for kind in kinds}

    def done(unit: Unit, subject: Subject) -> bool:
        row = (subject.cell_id, *unit.key.values())
        there = all(row in stored[table, tuple(unit.key)] for table in unit.tables)
        return there or (subject.cell_id, failure_name(task, unit)) in failed

    return [unit for unit in units if not all(done(unit, subject) for subject in unit.subjects)]


def _stored(store: RunStore, table: str, columns: tuple[str, ...]) -> set[tuple[Any, ...]]:
    """The values of `cell_id` and some columns that a table holds in rows that were not skipped."""
    if not columns:
        return {(cell,) for cell in store.cell_ids(table)}
    names = ("cell_id", *columns)
    rows = store.run.rows(table, {*names, "status"}).to_pydict()
    counts = [status != "skipped" for status in rows.get("status", [None] * len(rows["cell_id"]))]
    found = zip(*(rows[name] for name in names), strict=True)
    return {row for row, counted in zip(found, counts, strict=True) if counted}


def failure_name(task: str, unit: Unit) -> str:
    """What the table `failures` calls a unit that ended without rows, in its column `pass`."""
    return f"{task}: {unit.title}" if unit.key else task


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What came of something that may fail: its value when `status` is "ok", else a sentence."""

    status: str
    error: str | None = None
    value: T | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def outcome(self) -> dict[str, str | None]:
        return {"status": self.status, "error": self.error}


def failed_cells(store: RunStore) -> dict[str, Attempt[Any]]:
    """What came of the cells that failed while they were timed; nothing tries them again."""
    timings = store.read("timings")
    bad = timings[~timings["status"].isin(["ok", "skipped"])]
    return {row["cell_id"]: Attempt(row["status"], row["error"]) for row in bad.to_dict("records")}


@dataclass
class Bench:
    """What units are measured with, in the process that measures: the flow and the decoders in use.

    Args:
        failed: what came of the cells that failed while they were timed; nothing tries them again.
        files: what goes into the run folder beside the rows, by relative path.
    """

    session: str  # names this process in the rows
    failed: dict[str, Attempt[Any]] = field(default_factory=dict)
    inputs: Sequence[bytes] = ()  # content of the files that the unit at hand names
    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # sentences for the user

    def __post_init__(self) -> None:
        self._kept: dict[str, tuple[Any, Any]] = {}
        self._told: set[str] = set()

    def flow(self, subject: Subject) -> CausalFlow:
        """The flow of a subject; only the last one is kept."""
        key = (subject.checkpoint_digest, subject.device, subject.dtype)
        return self.keep("flow", key, subject.load)

    def decoder(self, cell: Cell) -> Decoder:
        """The decoder of a cell, built once per group."""
        built: dict[str, Decoder] = self.keep("decoders", cell.group_id, dict)
        if cell.cell_id not in built:
            built[cell.cell_id] = cell.build()
        return built[cell.cell_id]

    def batch(self, subject: Subject, indices: Sequence[int]) -> ExactBatch:
        return batch_of(subject, self.flow(subject), indices)

    def attempt(self, subject: Subject, work: str, measure: Callable[[], T]) -> Attempt[T]:
        """Try to measure; an exception becomes a status and a sentence, its traceback a file in the run folder."""
        try:
            with settings_kept() as changed:
                value = measure()
            return Attempt("ok", value=value)
        except KeyboardInterrupt:  # the user's
            raise
        except BaseException as error:  # whatever a decoder raises, even an exit, is its own row's business
            status, sentence = "failed", because(error)
            if isinstance(error, NonFiniteError):
                status = "non-finite"
            elif _out_of_memory(error):
                status = "out-of-memory"
            name = "".join(letter if letter.isalnum() or letter in "+-." else "-" for letter in work)
            self.files[f"failures/{subject.cell_id}-{name}.txt"] = traceback.format_exc().encode()
        finally:
            self._tell(subject, changed)
        release_memory()  # here, where the exception and the frames it holds are gone
        return Attempt(status, sentence)

    def _tell(self, subject: Subject, changed: Sequence[str]) -> None:
        if changed and subject.cell_id not in self._told:
            self._told.add(subject.cell_id)
            name = subject.title if isinstance(subject, Cell) else subject.checkpoint
            self.notes.append(
                f"{name}: changes {', '.join(changed)} while it decodes; put back after every decode, since "
                "others are measured in the same process"
            )

    def add_grid(self, name: str, images: Tensor, columns: int) -> None:
        """Put a grid of (N, C, H, W) images among the files, small images magnified."""
        grid = image_grid(images, columns=columns, scale=max(1, 32 // images.shape[-1]))
        grid.save(png := io.BytesIO(), "PNG", optimize=True)
        self.files[name] = png.getvalue()

    def keep(self, kind: str, key: Any, make: Callable[[], T]) -> T:
        """The last thing made of a kind, made again only for another key; the old one goes before the new one comes."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept.pop(kind, None)
            self._kept[kind] = (key, make())
        return self._kept[kind][1]


def rows_or_failure(task: str, unit: Unit, bench: Bench, measure: Callable[[], Mapping[str, Rows]]) -> dict[str, Rows]:
    """What a unit of one subject measures, or where it fails its row of the table `failures`."""
    (subject,) = unit.subjects
    name = failure_name(task, unit)
    attempt = bench.failed.get(subject.cell_id) or bench.attempt(subject, name, measure)
    if attempt.value is None:
        return {"failures": [subject.identity | {"pass": name, **attempt.outcome}]}
    return dict(attempt.value)


def batches(indices: range, size: int) -> Iterator[range]:
    """Consecutive indices in runs of at most `size`."""
    return (indices[start : start + size] for start in range(0, len(indices), size))


def batch_of(subject: Subject, flow: CausalFlow, indices: Sequence[int]) -> ExactBatch:
    """The samples of a subject with these global indices: the same ones whatever is measured of them."""
    latents, labels = indexed_latents(flow, subject.seed, indices), cycling_labels(flow, indices)
    return ExactBatch(flow, latents, None if labels is None else labels.to(flow.device), subject.build_guidance())


def require_finite(result: DecodeResult) -> None:
    """Raise when a sample is not finite. Raises NonFiniteError: the sentence says how many."""
    bad = int((~result.tokens.isfinite()).flatten(1).any(dim=1).sum())
    if bad:
        raise NonFiniteError(f"{bad} of {len(result.tokens)} samples are not finite")


def nonfinite_retries(result: DecodeResult) -> int:
    """Layers that were decoded again, exactly, because what a decoder made of them was not finite."""
    return sum("non-finite" in trace.flags and "redecoded" in trace.flags for trace in result.layers)


def denoise(result: DecodeResult, batch: ExactBatch, sigma: float) -> Tensor:
    """(B, C, H, W) samples after a denoising step that takes out noise of standard deviation `sigma`."""
    assert result.images is not None and isinstance(batch.flow, Denoises)  # what is planned was made sure of
    return batch.flow.denoise(result.images, sigma, batch.labels)


def release_memory() -> None:
    """Give back what failed or finished work held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def sample_file(cell: Cell) -> str:
    """Where in the run folder the grid of a cell's samples is: ``samples/<cell_id>.png``."""
    return f"samples/{cell.cell_id}.png"
