"""What the passes share: a unit of work, what it is measured with, and how a failure becomes a row."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from harness.decoders import Decoder, DecodeResult, Guidance
from harness.errors import HarnessError
from harness.flows import CausalFlow, load_flow
from harness.flows.latents import cycling_labels, indexed_latents
from harness.flows.protocols import Denoises
from harness.measure.cells import Cell
from harness.runs.store import RunStore

T = TypeVar("T")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Unit:
    """The least piece of work: its rows are appended together, and a killed run loses at most one per worker.

    Args:
        title: what progress shows.
        cells: that are measured, of one group.
        cost: in decodes, for the estimate of the remaining time alone.
        round: of the timing pass.
        indices: global indices of the samples that are measured, where a cell's are split.
        inputs: files of the run folder whose content the measuring process needs, see `Bench.inputs`.
    """

    title: str
    cells: tuple[Cell, ...]
    cost: float
    round: int = 0
    indices: range | None = None
    inputs: tuple[str, ...] = ()


class Pass(Protocol):
    """One kind of measurement over all cells: plain settings, so that it travels to where it measures."""

    @property
    def name(self) -> str:
        """What it measures."""
        ...

    @property
    def exclusive(self) -> bool:
        """Whether nothing else may run on the device meanwhile."""
        ...

    def missing(self, cells: Sequence[Cell], store: RunStore) -> list[Unit]:
        """The units whose rows are not in the store yet."""
        ...

    def together(self, unit: Unit) -> Hashable:
        """Units with equal keys are measured one after the other by one process."""
        ...

    def measure(self, unit: Unit, bench: Bench) -> Mapping[str, Rows]:
        """Rows by table; runs in a process without the store."""
        ...


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What came of something that may fail: its value when `status` is "ok", else a sentence."""

    status: str
    error: str | None = None
    value: T | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.status == "ok"

    @property
    def outcome(self) -> dict[str, str | None]:
        """The columns `status` and `error`."""
        return {"status": self.status, "error": self.error}


@dataclass(frozen=True)
class Batch:
    """What a decode starts from: (B, L, D) latents, (B,) labels or None, guidance or None."""

    latents: Tensor
    labels: Tensor | None
    guidance: Guidance | None


def failed_cells(store: RunStore) -> dict[str, Attempt[Any]]:
    """What came of the cells that failed in the timing pass; nothing tries them again."""
    timings = store.read("timings")
    bad = timings[~timings["status"].isin(["ok", "skipped"])]
    return {row["cell_id"]: Attempt(row["status"], row["error"]) for row in bad.to_dict("records")}


@dataclass
class Bench:
    """What the passes measure with, in the process that measures: the flow and the decoders in use.

    Args:
        session: names this process in the rows.
        failed: what came of the cells that failed in the timing pass; nothing tries them again.
        inputs: content of the files that the unit at hand names.
        files: what goes into the run folder beside the rows, by relative path.
    """

    session: str
    failed: dict[str, Attempt[Any]] = field(default_factory=dict)
    inputs: Sequence[bytes] = ()
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._flow: tuple[tuple[str, str, str], CausalFlow] | None = None
        self._decoders: tuple[str, dict[str, Decoder]] = ("", {})
        self._kept: dict[str, tuple[Any, Any]] = {}

    def flow(self, cell: Cell) -> CausalFlow:
        """The flow of a cell; only the last one is kept."""
        key = (cell.checkpoint_digest, cell.device, cell.dtype)
        if self._flow is None or self._flow[0] != key:
            self._flow = None  # the old one goes before the new one comes
            self._flow = (key, load_flow(cell.checkpoint_path, device=cell.device, dtype=cell.torch_dtype))
        return self._flow[1]

    def decoder(self, cell: Cell) -> Decoder:
        """The decoder of a cell, built once per group."""
        if self._decoders[0] != cell.group_id:
            self._decoders = (cell.group_id, {})
        built = self._decoders[1]
        if cell.cell_id not in built:
            built[cell.cell_id] = cell.build()
        return built[cell.cell_id]

    def batch(self, cell: Cell, indices: Sequence[int] | None = None) -> Batch:
        """The samples with these global indices, by default the first `batch_size`."""
        return batch_of(cell, self.flow(cell), range(cell.batch_size) if indices is None else indices)

    def attempt(self, cell: Cell, work: str, measure: Callable[[], T]) -> Attempt[T]:
        """Try to measure; an exception becomes a status and a sentence, its traceback a file in the run folder."""
        try:
            return Attempt("ok", value=measure())
        except Exception as error:  # whatever a decoder raises is its own row's business
            status, sentence = "failed", f"{type(error).__name__}: {error}"
            if isinstance(error, NonFiniteError):
                status, sentence = "non-finite", str(error)
            elif isinstance(error, HarnessError):
                sentence = str(error)
            elif _out_of_memory(error):
                status = "out-of-memory"
            self.files[f"failures/{cell.cell_id}-{work}.txt"] = traceback.format_exc().encode()
        release_memory()  # here, where the exception and the frames it holds are gone
        return Attempt(status, " ".join(sentence.split())[:500])

    def keep(self, kind: str, key: Any, make: Callable[[], T]) -> T:
        """The last thing made of a kind, made again only for another key."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept.pop(kind, None)
            self._kept[kind] = (key, make())
        return self._kept[kind][1]


def batch_of(cell: Cell, flow: CausalFlow, indices: Sequence[int]) -> Batch:
    """The samples of a cell with these global indices."""
    latents, labels = indexed_latents(flow, cell.seed, indices), cycling_labels(flow, indices)
    return Batch(latents, None if labels is None else labels.to(latents.device), cell.build_guidance())


class NonFiniteError(HarnessError):
    """A decode gave infinities or NaN."""


def decode(decoder: Decoder, flow: CausalFlow, batch: Batch) -> DecodeResult:
    """Decode a batch."""
    return decoder.decode(flow, batch.latents, batch.labels, batch.guidance)


def require_finite(result: DecodeResult) -> None:
    """Raise when a sample is not finite.

    Raises:
        NonFiniteError: the sentence says how many.
    """
    bad = int((~result.tokens.isfinite()).flatten(1).any(dim=1).sum())
    if bad:
        raise NonFiniteError(f"{bad} of {len(result.tokens)} samples are not finite")


def nonfinite_retries(result: DecodeResult) -> int:
    """Layers that were decoded again, exactly, because what a decoder made of them was not finite."""
    return sum("non-finite" in trace.flags and "redecoded" in trace.flags for trace in result.layers)


def denoise(flow: CausalFlow, result: DecodeResult, batch: Batch, sigma: float) -> Tensor:
    """(B, C, H, W) samples after a denoising step that takes out noise of standard deviation `sigma`."""
    assert result.images is not None and isinstance(flow, Denoises)  # as preparation has made sure of
    return flow.denoise(result.images, sigma, batch.labels)


def release_memory() -> None:
    """Give back what failed or finished work held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory(error: Exception) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def sample_file(cell: Cell) -> str:
    """Where in the run folder the grid of a cell's samples is: ``samples/<cell_id>.png``."""
    return f"samples/{cell.cell_id}.png"
