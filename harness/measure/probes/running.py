"""A probe from start to end: its rows into a run folder, unit by unit, and never twice."""

from __future__ import annotations

import hashlib
import inspect
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from harness import __version__
from harness.flows import CausalFlow, load_flow
from harness.flows.checkpoints import checkpoint_path, digest, read_state
from harness.measure.cells import resolve_device
from harness.measure.probes.probe import Probe, Subject, Unit, probes
from harness.progress import Reporter
from harness.runs.environment import code_version, digest_sources, environment
from harness.runs.store import MANIFEST, Run, RunStore
from harness.runs.tables import TABLES


def run_probe(
    probe: Probe,
    checkpoint: str,
    out: Path,
    reporter: Reporter,
    *,
    resume: bool = False,
    dataset: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_root: str | None = None,
) -> Run:
    """Run a probe on a flow, or what a killed one has left of it.

    Args:
        probe: from `build_probe`.
        checkpoint: a shipped flow's name or a file.
        out: the run folder: new or empty, or with `resume` any that is there already.
        reporter: told of every unit.
        resume: add to what is there; where nothing is there, start.
        dataset: real images that the flow was trained on; by default what the checkpoint says.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        threads: of torch on the CPU; by default as many as torch takes.
        data_root: folder of the real images.

    Returns:
        The run.

    Raises:
        HarnessError: a checkpoint that cannot be read, or options that do not fit it; found before any folder is
            touched.
        StoreError: a folder that cannot be used.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = resolve_device(device)
    path = checkpoint_path(checkpoint)
    flow = load_flow(checkpoint, device=device, dtype=probe.torch_dtype)
    subject = Subject(
        flow=flow,
        path=path,
        checkpoint=path.name if "/" in checkpoint else path.stem,
        dataset=dataset or dataset_of(path),
        folder=out,
        device=device,
        data_root=data_root,
        seed=probe.seed,
        note=reporter.note,
    )
    units, description = probe.units(subject), describe(probe, subject)
    with _open(out, device, resume) as store, reporter:
        for damaged in store.damaged:
            reporter.note(f"a damaged part was moved to '{damaged}'; its rows are measured again")
        if description["cell_id"] not in store.cell_ids("probes"):
            store.append("probes", [description])
        missing = _missing(store, description["cell_id"], units)
        reporter.begin(sum(unit.cost for unit in missing))
        found = probe.measure(subject, missing)
        for unit in missing:
            reporter.unit(description["probe"], f"{subject.checkpoint}, {unit.title}")
            for table, rows in next(found).items():
                shared = {name: description[name] for name in TABLES[table].names if name in description}
                store.append(table, [shared | row for row in rows])
            reporter.advance(unit.cost)
        store.compact()
        return store.run


def dataset_of(path: Path) -> str:
    """The dataset that a checkpoint says it was trained on; its own name where it says nothing."""
    return read_state(path)[1].get("dataset", path.stem)


def describe(probe: Probe, subject: Subject) -> dict[str, Any]:
    """The row of the table `probes`: what determines the result, and the hashes of that."""
    key = {
        "probe": _name_of(probe),
        "options": json.dumps(probe.options(), sort_keys=True, allow_nan=False),
        "dataset": subject.dataset,
        "checkpoint_digest": digest(subject.path),
        "seed": probe.seed,
        "dtype": probe.dtype,
        "device": subject.device,
    }
    precise = key | {"code_version": _version_of(type(probe))}
    flow: CausalFlow = subject.flow
    return precise | {
        "cell_id": _hash(precise),
        "cell_key": _hash(key),
        "checkpoint": subject.checkpoint,
        "num_tokens": flow.num_tokens,
        "num_layers": flow.num_layers,
        "token_dim": flow.token_dim,
        "threads": torch.get_num_threads(),
    }


def _open(out: Path, device: str, resume: bool) -> RunStore:
    facts = environment(device)
    session = {
        uuid.uuid4().hex[:12]: {"environment": facts, "started": datetime.now(UTC).isoformat(timespec="seconds")}
    }
    if resume and (out / MANIFEST).is_file():
        store = RunStore.resume(out)
        store.write_manifest(store.manifest | {"sessions": store.manifest.get("sessions", {}) | session})
        return store
    return RunStore.create(out, {"harness": __version__, "environment": facts, "sessions": session})


def _missing(store: RunStore, cell_id: str, units: list[Unit]) -> list[Unit]:
    columns: dict[str, set[str]] = {}
    for unit in units:
        for table in unit.tables:
            columns.setdefault(table, {"cell_id"}).update(unit.key)
    own = {name: store.run.rows(name, keys, {cell_id}).to_pandas() for name, keys in columns.items()}
    return [unit for unit in units if not all(_holds(own[table], unit.key) for table in unit.tables)]


def _holds(frame: pd.DataFrame, key: dict[str, Any]) -> bool:
    for column, value in key.items():
        frame = frame[frame[column] == value]
    return len(frame) > 0


def _name_of(probe: Probe) -> str:
    for name, cls in probes.items():
        if cls is type(probe):
            return name
    return f"{type(probe).__module__}:{type(probe).__qualname__}"


def _version_of(cls: type[Probe]) -> str:
    """Of the flows and decoders, and of the probe's own file."""
    source = inspect.getsourcefile(cls)
    own = digest_sources([Path(source)], Path(source).parent) if source else ""
    return _hash([code_version(), own])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
