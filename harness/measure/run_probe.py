"""A probe from start to end: its units through the engine, its rows into a run folder, never twice."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness.fitting import prepare
from harness.flows import CausalFlow
from harness.flows.checkpoints import checkpoint_path, read_metadata, unwrapped
from harness.measure.cells import Subject, content_hash, resolve_device
from harness.measure.engine import RunSink, open_store, run
from harness.measure.probes.probe import Probe, probes
from harness.measure.units import Bench, Rows, Unit, Work, missing, rows_or_failure
from harness.measure.workers.dispatch import RETRIES
from harness.measure.workers.executor import Executor
from harness.measure.workers.local import Local
from harness.progress import Reporter
from harness.runs.environment import source_version
from harness.runs.store import Run
from harness.runs.tables import TABLES


@dataclass(frozen=True)
class ProbeTask:
    """The units of a probe as a task; a unit that fails is a row of the table `failures`."""

    name: str
    probe: Probe  # with its options
    description: Mapping[str, Any]  # the row of the table `probes`, whose columns its other tables repeat

    @property
    def exclusive(self) -> bool:
        return self.probe.exclusive

    def together(self, unit: Unit) -> Hashable:
        return self.probe.together(unit)

    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        described = {
            table.name: {name: self.description[name] for name in table.columns if name in self.description}
            for table in self.probe.tables
        }

        def measured() -> dict[str, Rows]:
            found = self.probe.measure(unit, bench)
            return {table: [described[table] | row for row in rows] for table, rows in found.items()}

        return rows_or_failure(self.name, unit, bench, measured)


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
    weights: str | None = None,
    executor: Executor | None = None,
    retries: int = RETRIES,
) -> Run:
    """Run a probe on a flow, or what a killed one has left of it.

    Returns the run. Raises LostJobsError: jobs were lost more often than that; all others are done; HarnessError: a
    checkpoint that cannot be read, or options that do not fit it; found before any folder is touched; StoreError: a
    folder that cannot be used.

    Args:
        out: the run folder: new or empty, or with `resume` any that is there already.
        resume: add to what is there; where nothing is there, start.
        dataset: real images that the flow was trained on; by default what the checkpoint says.
        weights: which ones of the checkpoint, see `load_flow`.
        executor: where units are measured: in a fresh process of this machine by default.
        retries: times that what a lost process had begun is run again.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    name, subject = _name_of(probe), subject_of(probe, checkpoint, dataset, resolve_device(device), data_root, weights)
    flow = subject.load()
    probe.units(flow, subject)  # what does not fit is told before anything is fitted
    with reporter:
        subject = replace(subject, cell_id=content_hash([subject.cell_id, *_fits(probe, subject, reporter)]))
    units, description = probe.units(flow, subject), _description(probe, name, subject, flow)
    del flow  # it is loaded again where it is measured
    executor = executor or Local()
    executor.prepare(subject.device)
    with open_store(out, subject.device, resume) as store, reporter, closing(executor):
        for damaged in store.damaged:
            reporter.note(f"a damaged part was moved to '{damaged}'; its rows are measured again")
        store.declare({table.name: table for table in probe.tables if table.name not in TABLES})
        if subject.cell_id not in store.cell_ids("probes"):
            store.append("probes", [description])
        work = Work(ProbeTask(name, probe, description), lambda: missing(units, store, name))
        with RunSink(store) as sink:
            run([[work]], sink, executor, reporter, device=subject.device, threads=threads, retries=retries)
        store.compact()
        return store.run


def _fits(probe: Probe, subject: Subject, reporter: Reporter) -> list[str | None]:
    """Digests of what the decoders of a probe read; what is missing is made first, and told."""
    found, flow = list[str | None](), replace(subject, dtype="float32").load()
    for decoder, batch in probe.reads():
        prepare(decoder, flow, batch, reporter.note, reporter)
        found.append(decoder.digest(flow, batch))
    return found


def subject_of(
    probe: Probe,
    checkpoint: str,
    dataset: str | None,
    device: str,
    data_root: str | None = None,
    weights: str | None = None,
) -> Subject:
    """What a probe measures; its id hashes what determines the result, the probe's options and sources included."""
    given = checkpoint_path(checkpoint, data_root)
    path = unwrapped(given, weights)
    return Subject.of(
        path,
        given.name if "/" in checkpoint else given.stem,
        seed=probe.seed,
        device=device,
        dtype=probe.dtype,
        dataset=dataset or read_metadata(path).get("dataset", path.stem),
        data_root=data_root,
        code_version=source_version(type(probe)),
        probe=_name_of(probe),
        options=_options(probe),
    )


def _description(probe: Probe, name: str, subject: Subject, flow: CausalFlow) -> dict[str, Any]:
    shared = ("cell_id", "cell_key", "dataset", "checkpoint", "checkpoint_digest", "seed", "dtype", "device")
    return {column: getattr(subject, column) for column in (*shared, "code_version")} | {
        "probe": name,
        "options": _options(probe),
        "num_tokens": flow.num_tokens,
        "num_layers": flow.num_layers,
        "token_dim": flow.token_dim,
        "threads": torch.get_num_threads(),
    }


def _options(probe: Probe) -> str:
    return json.dumps(probe.options(), sort_keys=True, allow_nan=False)


def _name_of(probe: Probe) -> str:
    for name, cls in probes.items():
        if cls is type(probe):
            return name
    return f"{type(probe).__module__}:{type(probe).__qualname__}"
