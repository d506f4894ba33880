"""Samples that are drawn into many files: a folder of PNG files or a Parquet file, in shards that a resumed call keeps.

The result does not depend on how many processes or machines draw: sample i comes from latent i of the seed, and shards
are whole batches, the scope of most stopping rules.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Hashable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from harness.datasets import to_pixels
from harness.decoders.trace import told
from harness.errors import HarnessError
from harness.files import TEXT, not_as, replacing, write_text
from harness.measure.engine import LostJobsError, run, write_files
from harness.measure.sampling import Request, output_kind, refuse_nonfinite, sample_labels
from harness.measure.units import Bench, Rows, Task, Unit, Work, batches
from harness.measure.workers.dispatch import RETRIES
from harness.measure.workers.executor import Executor
from harness.measure.workers.job import Outcome
from harness.progress import Reporter

SHARD = 1024
"""Samples that are drawn at a time, or the next whole batch."""
REQUEST = "samples.json"
"""What a folder of images was drawn with."""
SCHEMA = pa.schema(
    [("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64()), ("index", pa.int64())]
)


@dataclass(frozen=True)
class DrawTask:
    """One unit per shard, whose files are images or one part of a Parquet file."""

    request: Request
    parquet: bool

    name: ClassVar[str] = "sample"
    exclusive: ClassVar[bool] = False

    def units(self, drawn: set[int]) -> list[Unit]:
        """The shards but for those that begin at these indices."""
        size = -(-SHARD // self.request.batch_size) * self.request.batch_size
        return [
            Unit(f"samples {shard.start} to {shard.stop - 1}", (self.request.subject,), len(shard), indices=shard)
            for shard in batches(range(self.request.count), size)
            if shard.start not in drawn
        ]

    def together(self, unit: Unit) -> Hashable:
        return unit.indices

    def measure(self, unit: Unit, bench: Bench) -> Mapping[str, Rows]:
        indices = unit.indices
        assert indices is not None
        flow = bench.flow(self.request.subject)
        drawn = self.request.draw(flow, indices)
        images, certificate = drawn.images, drawn.certificate
        labels = sample_labels(flow, self.request.labels, indices)
        finite = images.isfinite().flatten(1).all(dim=1)
        classes = [None] * len(indices) if labels is None else labels.tolist()
        kept = [row for row, good in zip(indices, finite.tolist(), strict=True) if good]
        pictures = zip(kept, [classes[row - indices.start] for row in kept], _pngs(images[finite]), strict=True)
        if self.parquet:
            bench.files[f"{indices.start:012d}.parquet"] = _to_parquet(pictures)
        else:
            for index, label, png in pictures:
                folder = "" if label is None or label < 0 else f"{label}/"
                bench.files[f"{folder}{index:06d}.png"] = png
        bad = len(indices) - len(kept)
        rows: Rows = [{"nonfinite": bad, "error": f"{bad} samples are not finite"}] if bad else []
        return {"samples": [*rows, *([] if certificate is None else [{"certified": certificate.counts}])]}


class SampleFolder:
    """A folder of samples as a sink: it knows what they are drawn with, and which shards are there.

    Raises HarnessError: the folder holds something else.

    Args:
        request: what is drawn, as plain values.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        self.path, self.request = path, request
        self.nonfinite: dict[str, int] = {}
        """Samples of a shard, by where it begins, that are not finite, and so are in no file."""
        self.certified: dict[str, dict[str, float]] = {}
        """What certificates told of a shard, see `Certificate.counts`, likewise."""
        self.drawn = self._claim()

    def add(self, task: Task, unit: Unit, outcome: Outcome, attempts: int) -> None:
        write_files(self.path, outcome.files)
        assert unit.indices is not None
        self.drawn.add(unit.indices.start)
        for row in outcome.rows.get("samples", []):
            for name, found in (("nonfinite", self.nonfinite), ("certified", self.certified)):
                if name in row:
                    found[str(unit.indices.start)] = row[name]
        self._note()

    def _claim(self) -> set[int]:
        """Make the folder, or see that it holds a part of the same samples: where the shards begin that it has."""
        file = self.path / REQUEST
        if not file.is_file():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise HarnessError(f"'{self.path}' is there and holds no samples of this command; give another --out")
            self.drawn = set()
            self._note()
            return self.drawn
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
            if there["request"] == json.loads(json.dumps(self.request)):
                self.nonfinite = {str(start): int(bad) for start, bad in there.get("nonfinite", {}).items()}
                self.certified = {str(start): dict(part) for start, part in there.get("certified", {}).items()}
                return set(there["drawn"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HarnessError(f"'{file}' does not tell what samples these are: {not_as(file, TEXT)}") from error
        raise HarnessError(
            f"'{self.path}' holds samples that were drawn otherwise ({REQUEST} says how); give another --out"
        )

    def _note(self) -> None:
        note = {"request": self.request, "drawn": sorted(self.drawn), "nonfinite": self.nonfinite}
        note |= {"certified": self.certified} if self.certified else {}
        write_text(self.path / REQUEST, json.dumps(note, indent=2) + "\n")


def draw_to_files(
    request: Request,
    out: Path,
    executor: Executor,
    reporter: Reporter,
    threads: int | None = None,
    retries: int = RETRIES,
) -> str:
    """Draw samples into a folder or a Parquet file; what an earlier call with the same request has drawn is kept.

    Returns a sentence on what was written. Raises NonFiniteError: samples that are not finite, which are in no file;
    HarnessError: the place holds something else, or a worker failed or was lost too often.

    Args:
        out: a ``.parquet`` file, with the columns ``img: {bytes, path}``, ``label`` (null where a
            sample has no class) and ``index``; else a folder, with
            ``INDEX.png`` or, where samples have classes, ``CLASS/INDEX.png``.
        retries: times that a shard is drawn again when its worker was lost.
    """
    parquet = output_kind(out) == "parquet"
    drawn_with = request.plain()
    if parquet and out.exists():
        return _finished(out, drawn_with)
    folder = SampleFolder(out.with_name(f".{out.name}.parts") if parquet else out, drawn_with)
    task = DrawTask(request, parquet)
    phases = [[Work(task, lambda: task.units(folder.drawn))]]
    with closing(executor), reporter:
        try:
            device = request.subject.device
            run(phases, folder, executor, reporter, device=device, threads=threads, retries=retries)
        except LostJobsError as error:
            raise HarnessError(
                f"some samples were not drawn ({error}); the same command draws what is missing"
            ) from error
    if parquet:
        _join(folder.path, out, drawn_with, folder.certified)
        shutil.rmtree(folder.path)
    refuse_nonfinite(sum(folder.nonfinite.values()), request.count, out)
    if not folder.certified:
        return f"{out}: {request.count} samples"
    return f"{out}: {request.count} samples; {told([*folder.certified.values()], request.build().certified_to)}"


def _to_parquet(drawn: Iterator[tuple[int, int | None, bytes]]) -> bytes:
    rows = [
        {"img": {"bytes": png, "path": f"{index:06d}.png"}, "label": None if label == -1 else label, "index": index}
        for index, label, png in drawn
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer := io.BytesIO())
    return buffer.getvalue()


def _pngs(images: Tensor) -> Iterator[bytes]:
    if images.shape[1] not in (1, 3):
        raise HarnessError(
            f"samples of {images.shape[1]} channels are no images that a file can hold, which take 1 or 3"
        )
    for pixels in to_pixels(images).permute(0, 2, 3, 1).numpy():
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(png := io.BytesIO(), "PNG")
        yield png.getvalue()


def _finished(out: Path, drawn_with: dict[str, Any]) -> str:
    try:
        written = pq.read_metadata(out)
        metadata = written.metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise HarnessError(f"'{out}' is there and is no Parquet file of samples; give another --out") from error
    if metadata.get(REQUEST.encode()) != json.dumps(drawn_with, sort_keys=True).encode():
        raise HarnessError(f"'{out}' holds samples that were drawn otherwise; give another --out")
    refuse_nonfinite(drawn_with["count"] - written.num_rows, drawn_with["count"], out)
    return f"{out}: {drawn_with['count']} samples, all there already"


def _join(folder: Path, out: Path, drawn_with: dict[str, Any], certified: dict[str, dict[str, float]]) -> None:
    """One Parquet file of all parts, a row group each."""
    counts = {"certified": json.dumps(certified)} if certified else {}
    schema = SCHEMA.with_metadata({REQUEST: json.dumps(drawn_with, sort_keys=True)} | counts)
    try:
        with replacing(out) as partial, pq.ParquetWriter(partial, schema) as writer:
            for part in sorted(folder.glob("*.parquet")):
                writer.write_table(pq.read_table(part).cast(schema))
    except pa.ArrowException as error:
        raise HarnessError(f"a shard in '{folder}' is damaged: {error}; take the folder away to draw anew") from error
