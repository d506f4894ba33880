"""`harness sample`: images from a flow with any decoder; here at once or as one grid, as files in `tasks.samples`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.datasets import datasets
from harness.datasets.decode import EXTENSIONS
from harness.datasets.images import finite_images, save_grid
from harness.decoders import Decoder, Guidance, build_decoder
from harness.decoders.decoder import ScheduleRequest
from harness.decoders.schedule import find_schedule
from harness.errors import HarnessError, NonFiniteError
from harness.files import require_writable
from harness.fitting import prepare
from harness.flows import CausalFlow, load_flow
from harness.flows.checkpoints import checkpoint_path, training_noise, unwrapped
from harness.flows.latents import cycling_labels, indexed_latents
from harness.flows.protocols import Denoises
from harness.measure.cells import BASELINE, Subject, resolve_device
from harness.measure.drawn import Sampled, name_of
from harness.measure.tasks.quality import compared
from harness.measure.units import batches
from harness.options import Labels, Positive, parse_decoder, read_value
from harness.progress import Reporter, reporter

MOST_NUMBERS = 1 << 27
"""In one grid of samples, which are all held at once: 10,000 colour images of 64x64, or two million digits."""


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
    return Sampled(torch.cat(images), results, time.perf_counter() - began, decoder)


def sample(
    flow: CausalFlow | str | Path | Mapping[str, Tensor] | nn.Module,
    count: int = 64,
    decoder: Decoder | str | None = None,
    *,
    labels: int | Sequence[int] | Tensor | None = None,
    seed: int = 0,
    guidance: Guidance | None = None,
    batch_size: int = 64,
    denoise: float | None = None,
) -> Sampled:
    """Draw samples: the images, and what was done for them.

    What the decoder reads and is missing is fitted first, which is told, takes a while, and is kept. Raises
    HarnessError: anything that cannot be done as asked.

    Args:
        flow: loaded, or what `load_flow` takes.
        decoder: built, or as ``"NAME option=value ..."``; by default ``"auto"`` where it was tuned for this flow on
            this device, else ``"sejd"``.
        labels: one class, or classes that take turns; -1 for none. By default all classes take turns.
        seed: of the latents; sample i of a seed is the same whatever the batch size.
        batch_size: samples decoded together, the scope of most stopping rules.
        denoise: standard deviation of the noise that the flow was trained with, for one denoising step.

    Example:
        >>> sample("digits", 4, "sejd tau=0.5", labels=3).images.shape
        torch.Size([4, 1, 8, 8])
    """
    if count < 1 or batch_size < 1:
        raise HarnessError(f"at least 1 sample is drawn, in batches of at least 1, not {count} in {batch_size}")
    loaded = flow if isinstance(flow, CausalFlow) else load_flow(flow)
    together = min(batch_size, count)
    if decoder is None:
        decoder = default_decoder(loaded, together, guidance)
    else:
        decoder = build_decoder(**parse_decoder(decoder)) if isinstance(decoder, str) else decoder
        if decoder.needs(loaded, together):
            with reporter() as progress:
                prepare(decoder, loaded, together, progress.note, progress)
    given = torch.as_tensor([] if labels is None else labels).flatten()
    if len(given) and given.is_floating_point():
        raise HarnessError(f"labels are whole numbers, not {labels}")
    turns = None if labels is None else given.tolist()
    return draw_samples(
        loaded, decoder, count, seed=seed, labels=turns, guidance=guidance, batch_size=batch_size, denoise=denoise
    )


def default_decoder(flow: CausalFlow, batch: int, guidance: Guidance | None = None) -> Decoder:
    """``auto`` where it was tuned for the flow on this device, whatever the batch size, else ``sejd``.

    A schedule is a fixed amount of work per layer, so it keeps its deviation in any batch; none was tuned for guidance.
    """
    auto = build_decoder("auto")
    tuned = guidance is None and find_schedule(flow, batch, None) is not None
    ready = tuned and all(isinstance(need, ScheduleRequest) for need in auto.missing(flow, batch))
    return auto if ready else build_decoder("sejd")


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
    asked: bool = True  # whether the decoder was asked for, or chosen since it was tuned for the flow

    def __post_init__(self) -> None:
        if self.denoise is not None and not 0 < self.denoise < math.inf:
            raise HarnessError(f"--denoise takes the noise in training, a number above 0, not {self.denoise}")

    def build(self) -> Decoder:
        return build_decoder(**self.decoder)

    def prepare(self, progress: Reporter) -> None:
        """Make what the decoder reads and is missing, before anything is drawn; for one that was not asked for, only
        what its certificate is calibrated by."""
        decoder = self.build() if self.asked else build_decoder(BASELINE, certify=self.build().certify)
        if decoder.reads:
            prepare(decoder, self.subject.load(), min(self.batch_size, self.count), progress.note, progress)

    def draw(self, flow: CausalFlow, indices: range) -> Sampled:
        """The samples with these global indices, whose start is a multiple of the batch size."""
        return draw_samples(
            flow, self.build(), len(indices), seed=self.subject.seed, labels=self.labels, guidance=self.guidance,
            batch_size=self.batch_size, denoise=self.denoise, first=indices.start,
        )  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """What determines the samples, as plain values."""
        subject = {name: getattr(self.subject, name) for name in ("checkpoint_digest", "seed", "device")}
        return {name: value for name, value in asdict(self).items() if name not in ("subject", "asked")} | subject


def read_request(
    flow: str,
    spec: str | None,
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
    certify: str | None = None,
) -> Request:
    """What the command line asks to draw. Raises HarnessError: anything that cannot be done as asked.

    Args:
        spec: the decoder, as ``"NAME option=value ..."``; by default `default_decoder`'s choice.
        guidance: scale; the next three are the other arguments of `Guidance`.
        denoise: the training noise, ``"auto"`` for what the checkpoint tells, or None for no denoising.
        weights: which ones of the checkpoint, see `load_flow`.
        certify: the decoder's option, a number or ``"state"``.
    """
    path = unwrapped(checkpoint_path(flow), weights)
    guided = None if guidance is None else Guidance(guidance, guidance_components, annealed, temperature)
    sigma = None
    if denoise is not None:
        sigma = training_noise(path) if denoise == "auto" else read_value("--denoise", Positive, denoise)
    subject = Subject.of(path, path.stem, seed=seed, device=resolve_device(device))
    chosen = name_of(default_decoder(subject.load(), batch_size, guided)) if spec is None else spec
    table = parse_decoder(chosen)
    if tau is not None and "tau" in table:
        raise HarnessError(f"decoder '{spec}' gives 'tau', and --tau gives another")
    table |= {} if tau is None else {"tau": tau}
    if certify is not None:
        table["certify"] = certify if certify == "state" else read_value("--certify", Positive, certify)
    if not type(build_decoder(**table)).takes_tau and tau:  # whatever is wrong is told before anything is drawn
        raise HarnessError(f"decoder '{table['name']}' takes no tau; leave --tau out, or give another --decoder")
    return Request(
        subject=subject,
        decoder=table,
        count=count,
        labels=None if labels is None else tuple(read_value("--labels", Labels, labels)),
        guidance=guided,
        batch_size=batch_size,
        denoise=sigma,
        asked=spec is not None,
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


def sample_to_grid(
    request: Request, out: Path, threads: int | None = None, dataset: str | None = None, data_root: str | None = None
) -> str:
    """Draw samples and write them as one image file; with `dataset`, compare them with its real images.

    Returns a sentence on what was written. Raises NonFiniteError: samples that are not finite, which the grid leaves
    out; HarnessError: anything that cannot be done as asked.
    """
    if out.is_dir():
        raise HarnessError(f"'{out}' is a folder, and its suffix that of one image; give another --out")
    require_writable(out.parent)
    if threads is not None:
        torch.set_num_threads(threads)
    if dataset is not None:
        datasets.get(dataset)  # a wrong name is told before anything is drawn
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
    said = (
        f"{out}: {request.count} samples by {request.decoder['name']} in {drawn.wall_s:.2f} s, {drawn.fpe:.2f} "
        f"forward-pass equivalents each, {drawn.state}{'' if drawn.certificate is None else f'; {drawn.certificate}'}"
    )
    return said if dataset is None else f"{said}\n{compared(drawn.images, dataset, request.subject.device, data_root)}"


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
