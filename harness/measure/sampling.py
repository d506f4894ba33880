"""`harness sample`: images from a flow with any decoder; here as one grid, as many files in `tasks.samples`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from harness.datasets.decode import EXTENSIONS
from harness.datasets.images import finite_images, save_grid
from harness.decoders import Decoder, DecodeResult, Guidance, build_decoder
from harness.errors import HarnessError, NonFiniteError
from harness.files import require_writable
from harness.fitting import prepare
from harness.flows import CausalFlow
from harness.flows.checkpoints import checkpoint_path, training_noise, unwrapped
from harness.flows.latents import cycling_labels, indexed_latents
from harness.flows.protocols import Denoises
from harness.measure.cells import Subject, resolve_device
from harness.measure.matrix import parse_decoder
from harness.measure.units import batches
from harness.options import Labels, Positive, read_value

MOST_NUMBERS = 1 << 27
"""In one grid of samples, which are all held at once: 10,000 colour images of 64x64, or two million digits."""


@dataclass(frozen=True)
class Sampled:
    """What was drawn."""

    images: Tensor  # (N, C, H, W), on the CPU
    batches: list[DecodeResult]  # what each batch's decode returned, in order
    wall_s: float  # seconds of decoding, denoising included

    @property
    def fpe(self) -> float:
        """Forward-pass equivalents, the mean over samples."""
        sizes = [len(batch.tokens) for batch in self.batches]
        return sum(n * batch.fpe for n, batch in zip(sizes, self.batches, strict=True)) / sum(sizes)


def draw_samples(
    flow: CausalFlow,
    decoder: Decoder,
    count: int,
    *,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    guidance: Guidance | None = None,
    batch_size: int = 64,
    denoise: float | None = None,
    first: int = 0,
) -> Sampled:
    """Draw `count` samples: the same ones as the quality rows of a run with this seed rest on.

    Raises HarnessError: the data are no images, labels the flow does not have, or denoising that it cannot do.

    Args:
        flow: whose data are images.
        seed: of the latents; sample i of a seed is the same whatever the batch size.
        labels: classes that take turns; -1 for none. By default all classes take turns.
        batch_size: samples decoded together, the scope of most stopping rules.
        denoise: standard deviation of the noise that the flow was trained with, for one denoising step.
        first: global index of the first sample.
    """
    if flow.image_shape is None:
        raise HarnessError("this flow's data are no images, so there is nothing to draw")
    if denoise is not None and not isinstance(flow, Denoises):
        raise HarnessError("this flow has no denoising step")
    images, results, began = [], [], time.perf_counter()
    for indices in batches(range(first, first + count), batch_size):
        turns = sample_labels(flow, labels, indices)
        result = decoder.decode(flow, indexed_latents(flow, seed, indices), turns, guidance)
        batch = result.images
        assert batch is not None  # the flow has an image shape
        if denoise is not None and isinstance(flow, Denoises):
            batch = flow.denoise(batch, denoise, turns)
        images.append(batch.float().cpu())
        results.append(result)
    return Sampled(torch.cat(images), results, time.perf_counter() - began)


@dataclass(frozen=True)
class Request:
    """What is drawn, see `draw_samples`; plain values, so that it travels."""

    subject: Subject  # the checkpoint on a device, and the seed
    decoder: Mapping[str, Any]  # its name and options, as a table of a matrix
    count: int
    labels: tuple[int, ...] | None
    guidance: Guidance | None
    batch_size: int
    denoise: float | None

    def __post_init__(self) -> None:
        if self.denoise is not None and not 0 < self.denoise < math.inf:
            raise HarnessError(f"--denoise takes the noise in training, a number above 0, not {self.denoise}")

    def build(self) -> Decoder:
        return build_decoder(**self.decoder)

    def prepare(self, report: Callable[[str], None]) -> None:
        """Make what the decoder reads and is missing, before anything is drawn."""
        prepare(self.build(), self.subject.load(), self.batch_size, report)

    def draw(self, flow: CausalFlow, indices: range) -> Sampled:
        """The samples with these global indices, whose start is a multiple of the batch size."""
        return draw_samples(
            flow, self.build(), len(indices), seed=self.subject.seed, labels=self.labels, guidance=self.guidance,
            batch_size=self.batch_size, denoise=self.denoise, first=indices.start,
        )  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """What determines the samples, as plain values."""
        subject = {name: getattr(self.subject, name) for name in ("checkpoint_digest", "seed", "device")}
        return {name: value for name, value in asdict(self).items() if name != "subject"} | subject


def read_request(
    flow: str,
    spec: str,
    *,
    count: int = 64,
    tau: float | None = None,
    seed: int = 0,
    labels: str | None = None,
    batch_size: int = 64,
    guidance: float | None = None,
    guidance_components: str = "ab",
    annealed: bool = False,
    temperature: float = 1.0,
    denoise: str | None = None,
    device: str = "auto",
    weights: str | None = None,
) -> Request:
    """What the command line asks to draw. Raises HarnessError: anything that cannot be done as asked.

    Args:
        spec: the decoder, as ``"NAME option=value ..."``.
        guidance: scale; the next three are the other arguments of `Guidance`.
        denoise: the training noise, ``"auto"`` for what the checkpoint tells, or None for no denoising.
        weights: which ones of the checkpoint, see `load_flow`.
    """
    path = unwrapped(checkpoint_path(flow), weights)
    table = parse_decoder(spec)
    if tau is not None and "tau" in table:
        raise HarnessError(f"decoder '{spec}' gives 'tau', and --tau gives another")
    table |= {} if tau is None else {"tau": tau}
    build_decoder(**table)  # refused here, before anything is drawn
    sigma = (
        None
        if denoise is None
        else training_noise(path)
        if denoise == "auto"
        else read_value("--denoise", Positive, denoise)
    )
    subject = Subject.of(path, path.stem, seed=seed, device=resolve_device(device))
    return Request(
        subject=subject,
        decoder=table,
        count=count,
        labels=None if labels is None else tuple(read_value("--labels", Labels, labels)),
        guidance=None if guidance is None else Guidance(guidance, guidance_components, annealed, temperature),
        batch_size=batch_size,
        denoise=sigma,
    )


def output_kind(out: Path) -> Literal["grid", "parquet", "folder"]:
    """How samples are written, by the suffix in any case; a `HarnessError` for that of some other kind of file."""
    suffix = out.suffix.lower()
    if suffix in EXTENSIONS | {".parquet"}:
        return "parquet" if suffix == ".parquet" else "grid"
    if suffix[1:2].isalpha() and not out.is_dir():
        raise HarnessError(
            f"samples are not written as '{out.suffix}': give one image ({', '.join(sorted(EXTENSIONS))}), a .parquet, "
            "or a folder, which has no such suffix unless it is there"
        )
    return "folder"


def sample_to_grid(request: Request, out: Path, threads: int | None = None) -> str:
    """Draw samples and write them as one image file, nearly square, small images magnified.

    Returns a sentence on what was written. Raises NonFiniteError: samples that are not finite, which the grid leaves
    out; HarnessError: anything that cannot be done as asked.
    """
    if out.is_dir():
        raise HarnessError(f"'{out}' is a folder, and its suffix that of one image; give another --out")
    require_writable(out.parent)
    if threads is not None:
        torch.set_num_threads(threads)
    flow = request.subject.load()
    numbers = request.count * math.prod(flow.image_shape or ())
    if numbers > MOST_NUMBERS:
        raise HarnessError(
            f"{request.count:,} samples are one grid of {numbers:,} numbers, at most {MOST_NUMBERS:,} are written; "
            "give as --out a folder or a .parquet"
        )
    drawn = request.draw(flow, range(request.count))
    finite = finite_images(drawn.images)
    if len(finite):
        save_grid(finite, out, math.ceil(math.sqrt(len(finite))), scale=max(1, 32 // finite.shape[-1]))
    refuse_nonfinite(request.count - len(finite), request.count, out)
    return f"{out}: {request.count} samples in {drawn.wall_s:.2f} s, {drawn.fpe:.2f} forward-pass equivalents each"


def refuse_nonfinite(bad: int, count: int, out: Path) -> None:
    """Raise NonFiniteError where some of the samples drawn are not finite."""
    if bad:
        rest = f"'{out}' holds the other {count - bad}" if bad < count else "no image was written"
        raise NonFiniteError(f"{bad} of {count} samples are not finite (NaN or infinite): {rest}")


def sample_labels(flow: CausalFlow, labels: Sequence[int] | None, indices: range) -> Tensor | None:
    """(n,) classes of samples with these global indices: those given in turn, by default all; None without classes."""
    if labels is None:
        return cycling_labels(flow, indices)
    if not labels:
        raise HarnessError("labels were asked for but none is given")
    return torch.tensor([labels[index % len(labels)] for index in indices])
