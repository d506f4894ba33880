"""`harness sample` for many images: a folder of PNG files or a Parquet file, drawn in shards that a resumed call keeps.

The result does not depend on how many processes or machines draw: sample i comes from latent i of the seed, and shards
are whole batches, the scope of most stopping rules.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from harness.datasets import to_pixels
from harness.errors import HarnessError
from harness.files import make_folder, unwritable, write_text
from harness.flows.checkpoints import digest
from harness.measure.cells import Cell
from harness.measure.sampling import Request, sample_labels
from harness.measure.units import Bench, Rows, Unit
from harness.measure.workers.dispatch import RETRIES, Finished, Lost, Started, measure
from harness.measure.workers.executor import Executor
from harness.measure.workers.jobs import jobs_of
from harness.progress import Reporter
from harness.runs.store import RunStore

SHARD = 1024
"""Samples that are drawn at a time, or the next whole batch."""
REQUEST = "samples.json"
"""What a folder of images was drawn with."""
SCHEMA = pa.schema(
    [("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64()), ("index", pa.int64())]
)


@dataclass(frozen=True)
class Draw:
    """The work of drawing: one unit per shard, whose files are images or one part of a Parquet file."""

    request: Request
    parquet: bool

    name: ClassVar[str] = "sample"
    exclusive: ClassVar[bool] = False

    def missing(self, cells: Sequence[Cell], store: RunStore) -> list[Unit]:
        """Nothing: what is drawn is no table of a run. See `units`."""
        return []

    def units(self, drawn: set[int]) -> list[Unit]:
        """The shards but for those that begin at these indices."""
        size = -(-SHARD // self.request.batch_size) * self.request.batch_size
        shards = (range(start, min(start + size, self.request.count)) for start in range(0, self.request.count, size))
        return [
            Unit(f"samples {shard.start} to {shard.stop - 1}", (), len(shard), indices=shard)
            for shard in shards
            if shard.start not in drawn
        ]

    def together(self, unit: Unit) -> Hashable:
        """Shards are drawn apart."""
        return unit.indices

    def measure(self, unit: Unit, bench: Bench) -> Mapping[str, Rows]:
        """The files of a shard."""
        indices = unit.indices
        assert indices is not None
        flow = bench.keep("flow", self.request.checkpoint, self.request.load)
        images = self.request.draw(flow, indices).images
        labels = sample_labels(flow, self.request.labels, indices)
        if self.parquet:
            bench.files[_part(indices)] = _to_parquet(images, labels, indices)
        else:
            bench.files |= dict(_to_files(images, labels, indices))
        return {}


def draw_to_files(
    request: Request,
    out: Path,
    executor: Executor,
    reporter: Reporter,
    threads: int | None = None,
    retries: int = RETRIES,
) -> str:
    """Draw samples into a folder or a Parquet file; what an earlier call with the same request has drawn is kept.

    Args:
        request: what is drawn.
        out: a ``.parquet`` file, with the columns ``img: {bytes, path}``, ``label`` and ``index``; else a folder, with
            ``INDEX.png`` or, where samples have classes, ``CLASS/INDEX.png``.
        executor: where.
        reporter: told of every shard.
        threads: of torch on the CPU.
        retries: times that a shard is drawn again when its worker was lost.

    Returns:
        A sentence on what was written.

    Raises:
        HarnessError: the place holds something else, or a worker failed or was lost too often.
    """
    parquet = out.suffix == ".parquet"
    folder = out.with_name(f".{out.name}.parts") if parquet else out
    told = asdict(request) | {"checkpoint": digest(Path(request.checkpoint))}
    if parquet and out.exists():
        return _finished(out, told)
    drawn = _claim(folder, told)
    work = Draw(request, parquet)
    units = work.units(drawn)
    jobs = jobs_of(work, units, executor.slots(request.device, exclusive=False), device=request.device, threads=threads)
    lost: list[str] = []
    with closing(executor), reporter, closing(measure(executor, jobs, folder, retries)) as events:
        reporter.begin(sum(unit.cost for unit in units))
        for event in events:
            if isinstance(event, Started):
                reporter.unit(work.name, event.unit.title)
            elif isinstance(event, Finished):
                _write(folder, event.outcome.files)
                assert event.unit.indices is not None
                drawn.add(event.unit.indices.start)
                _tell(folder, told, drawn)
                reporter.advance(event.unit.cost)
            elif isinstance(event, Lost):
                reporter.note(event.reason)
                lost += [] if event.again else [event.reason]
    if lost:
        raise HarnessError(f"some samples were not drawn ({lost[-1]}); the same command draws what is missing")
    if parquet:
        _join(folder, out, told)
        shutil.rmtree(folder)
    return f"{out}: {request.count} samples"


def _part(indices: range) -> str:
    return f"{indices.start:012d}.parquet"


def _to_files(images: Tensor, labels: Tensor | None, indices: range) -> Iterator[tuple[str, bytes]]:
    for place, (index, png) in enumerate(zip(indices, _pngs(images), strict=True)):
        label = -1 if labels is None else int(labels[place])
        yield f"{f'{label}/' if label >= 0 else ''}{index:06d}.png", png


def _to_parquet(images: Tensor, labels: Tensor | None, indices: range) -> bytes:
    rows = [
        {
            "img": {"bytes": png, "path": f"{index:06d}.png"},
            "label": None if labels is None else int(labels[place]),
            "index": index,
        }
        for place, (index, png) in enumerate(zip(indices, _pngs(images), strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer := io.BytesIO())
    return buffer.getvalue()


def _pngs(images: Tensor) -> Iterator[bytes]:
    for pixels in to_pixels(images.nan_to_num(nan=0.0)).permute(0, 2, 3, 1).numpy():
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(png := io.BytesIO(), "PNG")
        yield png.getvalue()


def _claim(folder: Path, told: dict[str, Any]) -> set[int]:
    """Make the folder, or see that it holds a part of the same samples: where the shards begin that it has.

    Raises:
        HarnessError: it holds something else.
    """
    path = folder / REQUEST
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise HarnessError(f"'{folder}' is there and holds no samples of this command; give another --out")
        _tell(folder, told, set())
        return set()
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        if there["request"] == json.loads(json.dumps(told)):
            return set(there["drawn"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"'{path}' cannot be read: {error}") from error
    raise HarnessError(f"'{folder}' holds samples that were drawn otherwise ({REQUEST} tells how); give another --out")


def _tell(folder: Path, told: dict[str, Any], drawn: set[int]) -> None:
    """Write down what is drawn, and the first samples of the shards that are."""
    write_text(folder / REQUEST, json.dumps({"request": told, "drawn": sorted(drawn)}, indent=2) + "\n")


def _finished(out: Path, told: dict[str, Any]) -> str:
    try:
        metadata = pq.read_schema(out).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise HarnessError(f"'{out}' is there and is no Parquet file of samples; give another --out") from error
    if metadata.get(REQUEST.encode()) != json.dumps(told, sort_keys=True).encode():
        raise HarnessError(f"'{out}' holds samples that were drawn otherwise; give another --out")
    return f"{out}: {told['count']} samples, all there already"


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a shard, each whole or not at all."""
    for name, data in files.items():
        path = folder / name
        make_folder(path.parent)
        partial = path.with_name(f".{path.name}.tmp")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError as error:
            raise unwritable(path, error) from error


def _join(folder: Path, out: Path, told: dict[str, Any]) -> None:
    """One Parquet file of all parts, a row group each."""
    schema = SCHEMA.with_metadata({REQUEST: json.dumps(told, sort_keys=True)})
    partial = folder / "whole.tmp"
    with pq.ParquetWriter(partial, schema) as writer:
        for part in sorted(folder.glob("*.parquet")):
            writer.write_table(pq.read_table(part).cast(schema))
    os.replace(partial, out)
