"""A matrix from start to end: cells, what their decoders read, then task after task into a run folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from harness.errors import HarnessError, StoreError
from harness.fitting import prepare
from harness.flows import CausalFlow
from harness.flows.protocols import Denoises
from harness.flows.published import published_as
from harness.measure.cells import Cell
from harness.measure.engine import Phases, RunSink, open_store, run
from harness.measure.expand import expand
from harness.measure.matrix import Matrix
from harness.measure.references import latest, reference_digest, references
from harness.measure.tasks.memory import MemoryTask
from harness.measure.tasks.quality import SHARD, SHARDS, QualityTask, ShardsTask, unknown_dataset
from harness.measure.tasks.timing import TimingTask, describe
from harness.measure.tasks.traces import LayersTask, ResidualsTask
from harness.measure.units import Rows, Work, failed_cells, missing
from harness.measure.workers.dispatch import RETRIES
from harness.measure.workers.executor import Executor
from harness.measure.workers.local import Local
from harness.progress import Reporter
from harness.runs.store import MANIFEST, Run, RunStore, read_run, require_new


def run_matrix(
    matrix: Matrix,
    out: Path,
    reporter: Reporter,
    *,
    resume: bool = False,
    threads: int | None = None,
    data_root: str | None = None,
    inception_weights: str | None = None,
    skip_corrupt: bool = False,
    executor: Executor | None = None,
    retries: int = RETRIES,
) -> Run:
    """Measure every cell of a matrix, or what a killed run has left of it.

    Returns the finished run. A cell that failed is a row with its status; nothing else is lost by it. Raises
    LostJobsError: jobs were lost more often than that; all others are done; HarnessError: anything wrong with the
    matrix, checkpoints or options, found before anything is measured; StoreError: a folder that cannot be used.

    Args:
        out: the run folder: new or empty, or with `resume` one that this matrix was started in.
        resume: continue what is there; where nothing is there, start.
        skip_corrupt: leave corrupt real images out; the quality rows count them.
        executor: where jobs run: in fresh processes of this machine by default.
        retries: times that a job is run again when its worker was lost.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    now = references(matrix, data_root, inception_weights, skip_corrupt)
    there = read_run(out).manifest if resume and (out / MANIFEST).is_file() else {}
    seen = latest(out, there.get("references_seen", {}), now)
    started = {**now, **there.get("references", {})}  # that cells have their names from
    if not resume:
        require_new(out)
    identity = {name: reference_digest(one) for name, one in started.items()}
    everything = expand(matrix, data_root, identity)
    with reporter:
        fitted = _fit(everything, reporter)
    if fitted:
        everything = expand(matrix, data_root, identity)
    cells = [cell for cell in everything if cell.absent is None]
    executor = executor or Local()
    executor.prepare(everything[0].device)
    descriptions, doubts = _described(everything)
    with _open(out, matrix, everything, resume, started) as store, reporter, closing(executor):
        store.write_manifest(store.manifest | {"references_seen": seen})
        reporter.note(f"{len(everything):,} cells of matrix '{matrix.name}'")
        for path in store.damaged:
            reporter.note(f"a damaged part was moved to '{path}'; its rows are measured again")
        known = store.cell_ids("cells")
        store.append("cells", [row for row in descriptions if row["cell_id"] not in known])
        for sentence in doubts:
            reporter.note(sentence)
        new = [cell for cell in everything if cell.absent and cell.cell_id not in known]
        skipped = {cell: {"status": "skipped", "error": cell.absent} for cell in new}
        store.append("timings", [describe(cell, None) | {"round": 0} | row for cell, row in skipped.items()])
        store.append("quality", [cell.identity | row for cell, row in skipped.items()])
        for dataset, reason in dict.fromkeys((cell.dataset, cell.absent) for cell in new):
            reporter.note(f"{dataset} is skipped: {reason}")
        if not cells:
            return store.run
        slots = executor.slots(cells[0].device, exclusive=False)
        shard = min(SHARD, -(-matrix.quality.num_samples // slots))  # as many as let all workers work
        digests = {name: reference_digest(one) for name, one in now.items()}
        quality = QualityTask(matrix.quality, data_root, inception_weights, skip_corrupt, digests, shard)
        with RunSink(store) as sink:
            run(
                _phases(matrix, quality, cells, store), sink, executor, reporter, device=cells[0].device,
                threads=threads, retries=retries, failed=partial(failed_cells, store),
            )  # fmt: skip
        shutil.rmtree(store.path / SHARDS, ignore_errors=True)
        store.compact()
        return store.run


def _fit(cells: Sequence[Cell], reporter: Reporter) -> bool:
    """Make what decoders read and is missing, each thing told before it is made; whether anything was."""
    lacking = [cell for cell in cells if cell.fitted is None and cell.absent is None and cell.build().reads]
    for cell in lacking:
        prepare(cell.build(), cell.load(), cell.batch_size, reporter.note, reporter)
    return bool(lacking)


def _phases(matrix: Matrix, quality: QualityTask, cells: Sequence[Cell], store: RunStore) -> Phases:

    def work(task: Any) -> Work:
        return Work(task, lambda: missing(task.units(cells), store, task.name))

    traces = [work(LayersTask()), *([work(ResidualsTask())] if matrix.residuals.enabled else [])]
    phases = [[work(TimingTask(matrix.timing.rounds, matrix.timing.warmup))], traces]
    if matrix.quality.enabled:
        shards = ShardsTask(quality)
        phases += [
            [Work(shards, partial(shards.missing, cells, store))],
            [Work(quality, partial(quality.missing, cells, store))],
        ]
    if matrix.memory.enabled:
        phases.append([work(MemoryTask())])
    return phases


def _described(cells: Sequence[Cell]) -> tuple[Rows, list[str]]:
    """Rows of the table `cells`, and sentences on checkpoints that need not be what they are called."""
    flows: dict[str, CausalFlow | None] = {}
    rows: Rows = []
    doubts: list[str] = []
    for cell in cells:
        if cell.checkpoint_digest not in flows:
            flow = None if cell.absent else cell.load()
            flows[cell.checkpoint_digest] = flow
            if flow is not None and flow.image_shape and (unknown := unknown_dataset(cell.dataset)):
                doubts.append(f"FID is not measured: {unknown}")
            known = published_as(cell.checkpoint_path)
            if flow is not None and known is not None:
                doubts += filter(None, [known.doubts(flow, cell.checkpoint_digest)])
        flow = flows[cell.checkpoint_digest]
        if flow is not None:
            try:
                flow.condition(1, guidance=cell.build_guidance())
            except HarnessError as error:
                raise HarnessError(f"checkpoint '{cell.checkpoint}' with guidance {cell.guidance}: {error}") from error
            if cell.denoise is not None and not isinstance(flow, Denoises):
                raise HarnessError(
                    f"checkpoint '{cell.checkpoint}' has no denoising step; remove 'denoise' from the matrix"
                )
        extra = {"token_dim": flow and flow.token_dim, "fitted": cell.fitted, "code_version": cell.code_version}
        rows.append(describe(cell, flow) | extra | {"checkpoint_digest": flow and cell.checkpoint_digest})
    return rows, doubts


def _open(out: Path, matrix: Matrix, cells: list[Cell], resume: bool, references: Mapping[str, Any]) -> RunStore:
    plan = {
        "matrix": matrix.model_dump(mode="json") | {"device": cells[0].device},
        "cells": hashlib.sha256(json.dumps(sorted(cell.cell_id for cell in cells)).encode()).hexdigest(),
        "code_versions": sorted({cell.code_version for cell in cells}),
        "checkpoints": {cell.checkpoint: cell.checkpoint_digest for cell in cells if not cell.absent},
        "skipped": {cell.dataset: cell.absent for cell in cells if cell.absent},
    }
    store = open_store(out, cells[0].device, resume, plan | {"references": dict(references)})
    there = store.manifest | {"matrix": _with_defaults(store.manifest.get("matrix"))}
    key = _first_difference(there["matrix"], plan["matrix"])
    for part, difference in {
        "matrix": f"with another matrix ('{key}' differs);",
        "checkpoints": "with other checkpoints;",
        "code_versions": "with other code of flows or decoders; its rows would not compare, so",
        "cells": "for other cells, such as those of another device;",
    }.items():
        if there.get(part) != plan[part]:
            store.close()
            raise StoreError(f"'{store.path}' was started {difference} give another --out")
    return store


def _with_defaults(stored: Any) -> Any:
    """A stored matrix, which knows nothing of keys that came later, with the defaults of these."""
    with suppress(ValidationError):
        return Matrix.model_validate(stored).model_dump(mode="json")
    return stored


def _first_difference(old: Any, new: Any, path: str = "matrix") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{path}.{key}")
    return path
