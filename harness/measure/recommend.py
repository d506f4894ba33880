"""Which decoder is fastest for one checkpoint: what is missing is fitted, the sensible ones measured in one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.decoders.exact import ExactBatch
from harness.fitting import prepare
from harness.measure.cells import resolve_device
from harness.measure.expand import expand
from harness.measure.matrix import Matrix, build_matrix
from harness.measure.run_matrix import run_matrix
from harness.measure.sources import table_of
from harness.metrics.timing import timed
from harness.progress import Reporter
from harness.runs.store import MANIFEST, Run, read_run, require_new

CLASSIC: list[dict[str, Any]] = [{"name": "sequential"}, {"name": "sejd"}]
"""What every choice is compared with."""
CANDIDATES: list[dict[str, Any]] = [
    *CLASSIC,
    {"name": "ujd"},
    {"name": "sejd", "initial": "fitted", "correction": "fitted"},
    {"name": "fitted", "iterations": [2, 1]},
    {"name": "frontier"},
]
"""What is measured beside `auto`: the papers' decoders, and those that a fit makes fast."""
SECONDS = 300.0
ROUNDS, SAMPLES = (5, 20), (16, 4096)
"""Least and most: of rounds, and of samples that quality rests on."""
FITTING = 0.15
"""Share of the seconds that timing the candidates of a schedule may take."""


def measure_choices(
    checkpoint: str,
    out: Path,
    reporter: Reporter,
    *,
    batches: Sequence[int] = (16,),
    budgets: Sequence[float | None] = (None,),
    candidates: Sequence[dict[str, Any]] = CANDIDATES,
    dataset: str | None = None,
    weights: str | None = None,
    seconds: float = SECONDS,
    device: str = "auto",
    resume: bool = False,
    threads: int | None = None,
    data_root: str | None = None,
    inception_weights: str | None = None,
) -> Run:
    """Fit what the candidates and `auto` read and is missing, then measure them; the finished run.

    Rounds and samples are as many as fit into the seconds, fitting aside; a resumed run keeps those it was started
    with. Raises HarnessError: as `run_matrix`, before anything is fitted.

    Args:
        out: the run folder: new or empty, or with `resume` one that this was started in.
        batches: samples decoded together; each is a group of paired rounds.
        budgets: of `auto`: RMSE to the exact sample, None for that of SeJD at tau 0.5.
        dataset: real images that the flow was trained on; by default what the checkpoint says.
        weights: which ones of the checkpoint, see `load_flow`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    resumed = read_run(out).manifest["matrix"] if resume and (out / MANIFEST).is_file() else None
    if not resume:
        require_new(out)
    autos = [{"name": "auto"} | ({} if budget is None else {"budget": budget}) for budget in dict.fromkeys(budgets)]
    stated = [budget for budget in budgets if budget is not None]
    within = {"max_deviation": max(*stated, 1e-5)} if len(stated) == len(budgets) else {}
    tables = {
        "name": out.name,
        "description": "The decoders that `harness recommend` chooses from",
        "device": resolve_device(device),
        "datasets": [table_of(checkpoint, dataset, weights)],
        "decoders": [*candidates, *autos],
        "grid": {"batch_sizes": list(dict.fromkeys(batches))},
        "residuals": {"enabled": False},
        "memory": {"enabled": False},
    }

    def matrix(rounds: int, samples: int) -> Matrix:
        quality = {"num_samples": samples, **within}
        return build_matrix(
            tables | {"timing": {"rounds": rounds}, "quality": quality}, f"the choices for {checkpoint}"
        )

    if resumed is not None:
        plan = resumed["timing"]["rounds"], resumed["quality"]["num_samples"]
    else:
        with reporter:
            plan = _plan(matrix(*(least for least, _ in (ROUNDS, SAMPLES))), seconds, reporter, data_root)
    return run_matrix(
        matrix(*plan), out, reporter, resume=resume, data_root=data_root, inception_weights=inception_weights
    )


def _plan(matrix: Matrix, seconds: float, reporter: Reporter, data_root: str | None) -> tuple[int, int]:
    """How many rounds and samples fit into the seconds, half of them each, from one decode of every cell.

    What the cells read is made first.
    """
    cells = expand(matrix, data_root)
    flow = cells[0].load()
    for cell in cells:
        prepare(cell.build(), flow, cell.batch_size, reporter.note, reporter, FITTING * seconds)
    took: dict[int, float] = {}
    reporter.begin(len(cells))
    for cell in cells:
        reporter.unit("try", cell.title)
        batch = ExactBatch.draw(flow, cell.batch_size, torch.Generator().manual_seed(cell.seed))
        decode = partial(batch.result, cell.build())
        if cell.device == "cuda":  # the first decode compiles and captures
            decode()
        wall_s, _ = timed(decode, cell.device)
        took[cell.batch_size] = took.get(cell.batch_size, 0.0) + wall_s
        reporter.advance(1)
    rounds, samples = seconds / 2 / sum(took.values()), seconds / 2 / sum(s / size for size, s in took.items())
    return _between(rounds, *ROUNDS), _between(samples, *SAMPLES)


def _between(count: float, least: int, most: int) -> int:
    return int(min(max(count, least), most))


def free(path: Path) -> Path:
    """A folder of this name, or the first of ``NAME-2``, ``NAME-3``, ... that is not there."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
