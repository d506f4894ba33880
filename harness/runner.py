"""A matrix from start to end: cells, then every pass unit by unit, each unit's rows stored before the next begins."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from harness import __version__
from harness.environment import environment
from harness.errors import HarnessError, StoreError
from harness.flows import CausalFlow, load_flow
from harness.matrix import Matrix
from harness.passes import Bench, LayersPass, MemoryPass, Pass, QualityPass, ResidualsPass, TimingPass
from harness.passes.timing import describe
from harness.plan import Cell, expand
from harness.progress import Reporter
from harness.store import MANIFEST, Run, RunStore


def run_matrix(
    matrix: Matrix,
    out: Path,
    reporter: Reporter,
    *,
    resume: bool = False,
    threads: int | None = None,
    data_root: str | None = None,
    inception_weights: str | None = None,
) -> Run:
    """Measure every cell of a matrix, or what a killed run has left of it.

    Args:
        matrix: what to measure.
        out: the run folder: new or empty, or with `resume` one that this matrix was started in.
        reporter: told of every unit.
        resume: continue what is there; where nothing is there, start.
        threads: of torch on the CPU; by default as many as torch takes.
        data_root: folder of the real images.
        inception_weights: file of Inception's weights.

    Returns:
        The finished run. A cell that failed is a row with its status; nothing else is lost by it.

    Raises:
        HarnessError: anything wrong with the matrix, checkpoints or options, found before anything is measured.
        StoreError: a folder that cannot be used.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    cells = expand(matrix)
    descriptions = _describe(cells)
    session = uuid.uuid4().hex[:12]
    with _open(out, matrix, cells, session, resume) as store, reporter:
        for path in store.damaged:
            reporter.note(f"a damaged part was moved to '{path}'; its rows are measured again")
        bench = Bench(store, session)
        described = store.cell_ids("cells")
        store.append("cells", [row for row in descriptions if row["cell_id"] not in described])
        passes = _passes(bench, matrix, data_root, inception_weights)
        work = [(step, unit) for step in passes for unit in step.missing(cells)]
        reporter.begin(sum(unit.cost for _, unit in work))
        for step, unit in work:
            reporter.unit(step.name, unit.title)
            for table, rows in step.measure(unit).items():
                store.append(table, rows)
                for sentence in sorted({row["error"] for row in rows if row.get("error")}):
                    reporter.note(f"{step.name}, {unit.title}: {sentence}")
            reporter.advance(unit.cost)
        store.compact()
        return store.run


def _passes(bench: Bench, matrix: Matrix, data_root: str | None, inception_weights: str | None) -> list[Pass]:
    """The passes that the matrix asks for, timing first: what fails there is not tried again."""
    passes: list[Pass] = [TimingPass(bench, matrix.timing.rounds, matrix.timing.warmup), LayersPass(bench)]
    if matrix.residuals.enabled:
        passes.append(ResidualsPass(bench))
    if matrix.quality.enabled:
        passes.append(QualityPass(bench, matrix.quality, data_root, inception_weights))
    if matrix.memory.enabled:
        passes.append(MemoryPass(bench, torch.get_num_threads()))
    return passes


def _open(out: Path, matrix: Matrix, cells: list[Cell], session: str, resume: bool) -> RunStore:
    """The run folder, its manifest telling of this session."""
    plan = {
        "matrix": matrix.model_dump(mode="json") | {"device": cells[0].device},
        "cells": hashlib.sha256(json.dumps(sorted(cell.cell_id for cell in cells)).encode()).hexdigest(),
        "code_versions": sorted({cell.code_version for cell in cells}),
        "checkpoints": {cell.checkpoint: cell.checkpoint_digest for cell in cells},
    }
    facts = environment(cells[0].device)
    this_session = {"environment": facts, "started": datetime.now(UTC).isoformat(timespec="seconds")}
    if resume and (out / MANIFEST).is_file():
        store = RunStore.resume(out)
        try:
            _require_same(store, plan)
        except StoreError:
            store.close()
            raise
        store.write_manifest(store.manifest | {"sessions": store.manifest["sessions"] | {session: this_session}})
        return store
    return RunStore.create(
        out, {"harness": __version__, **plan, "environment": facts, "sessions": {session: this_session}}
    )


def _require_same(store: RunStore, plan: dict[str, Any]) -> None:
    """Refuse to add rows to a run of something else.

    Raises:
        StoreError: what differs.
    """
    there, advice = store.manifest, "give another --out"
    if there.get("matrix") != plan["matrix"]:
        key = _first_difference(there.get("matrix"), plan["matrix"])
        raise StoreError(f"'{store.path}' was started with another matrix ('{key}' differs); {advice}")
    if there.get("checkpoints") != plan["checkpoints"]:
        raise StoreError(f"'{store.path}' was started with other checkpoints; {advice}")
    if there.get("code_versions") != plan["code_versions"]:
        raise StoreError(
            f"'{store.path}' was started with other code of flows or decoders; its rows would not compare, so {advice}"
        )
    if there.get("cells") != plan["cells"]:
        raise StoreError(f"'{store.path}' was started for other cells, such as those of another device; {advice}")


def _first_difference(old: Any, new: Any, path: str = "matrix") -> str:
    """The path of the first key whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{path}.{key}")
    return path


def _describe(cells: list[Cell]) -> list[dict[str, Any]]:
    """Rows of the table `cells`; every flow is loaded and every guidance bound once, before any folder is touched.

    Raises:
        HarnessError: a checkpoint that cannot be read, or guidance that its flow cannot have.
    """
    flows: dict[str, CausalFlow] = {}
    rows = []
    for cell in cells:
        if cell.checkpoint_digest not in flows:
            flows[cell.checkpoint_digest] = load_flow(cell.checkpoint_path)
        flow = flows[cell.checkpoint_digest]
        try:
            flow.condition(1, guidance=cell.build_guidance())
        except HarnessError as error:
            raise HarnessError(f"checkpoint '{cell.checkpoint}' with guidance {cell.guidance}: {error}") from error
        extra = ("checkpoint_digest", "code_version")
        rows.append(
            describe(cell, flow) | {"token_dim": flow.token_dim} | {name: getattr(cell, name) for name in extra}
        )
    return rows
