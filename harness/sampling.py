"""`harness sample`: draw images from a flow with any decoder and write them as one grid."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.decoders import Decoder, DecodeResult, Guidance, build_decoder
from harness.errors import HarnessError
from harness.flows import CausalFlow, load_flow
from harness.flows.checkpoints import checkpoint_path, training_noise
from harness.images import save_grid
from harness.latents import cycling_labels, indexed_latents
from harness.matrix import parse_decoder
from harness.plan import resolve_device


@dataclass(frozen=True)
class Sampled:
    """What was drawn.

    Args:
        images: (N, C, H, W), on the CPU.
        batches: what each batch's decode returned but for its images and tokens, in order.
        wall_s: seconds of decoding, denoising included.
    """

    images: Tensor
    batches: list[DecodeResult]
    wall_s: float

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
) -> Sampled:
    """Draw `count` samples: the same ones as the quality pass of a run with this seed compares.

    Args:
        flow: whose data are images.
        decoder: any.
        count: at least 1.
        seed: of the latents; sample i of a seed is the same whatever the batch size.
        labels: classes that take turns; -1 for none. By default all classes take turns.
        guidance: classifier-free guidance.
        batch_size: samples decoded together, the scope of most stopping rules.
        denoise: standard deviation of the noise that the flow was trained with, for one denoising step.

    Raises:
        HarnessError: the data are no images, labels the flow does not have, or denoising that it cannot do.
    """
    if flow.image_shape is None:
        raise HarnessError("this flow's data are no images, so there is nothing to draw")
    if denoise is not None and not hasattr(flow, "denoise"):
        raise HarnessError("this flow has no denoising step")
    images, batches, start = [], [], time.perf_counter()
    for first in range(0, count, batch_size):
        indices = range(first, min(first + batch_size, count))
        turns = cycling_labels(flow, indices) if labels is None else _turns(labels, indices)
        result = decoder.decode(flow, indexed_latents(flow, seed, indices), turns, guidance)
        batch = result.images
        assert batch is not None  # the flow has an image shape
        if denoise is not None:
            batch = flow.denoise(batch, denoise, turns)  # type: ignore[attr-defined]
        images.append(batch.float().cpu())
        batches.append(result)
    return Sampled(torch.cat(images), batches, time.perf_counter() - start)


def sample_to_grid(
    flow: str,
    spec: str,
    out: Path,
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
    threads: int | None = None,
) -> str:
    """Draw samples and write them as one PNG, nearly square, small images magnified.

    Args:
        flow: a shipped flow's name or a checkpoint file.
        spec: the decoder, as ``"NAME option=value ..."``.
        out: the PNG.
        tau: in place of the decoder's own.
        labels: comma-separated classes.
        guidance: scale; the next three are the other arguments of `Guidance`.
        denoise: the training noise, ``"auto"`` for what the checkpoint tells, or None for no denoising.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        threads: of torch on the CPU.
        count, seed, batch_size: see `draw_samples`.

    Returns:
        A sentence on what was written.

    Raises:
        HarnessError: anything that cannot be done as asked.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    path = checkpoint_path(flow)
    table = parse_decoder(spec) | ({} if tau is None else {"tau": tau})
    decoder = build_decoder(table.pop("name"), **table)
    sigma = None if denoise is None else training_noise(path) if denoise == "auto" else _number(denoise, "--denoise")
    drawn = draw_samples(
        load_flow(path, device=resolve_device(device)),
        decoder,
        count,
        seed=seed,
        labels=None if labels is None else [int(_number(part, "--labels")) for part in labels.split(",")],
        guidance=None if guidance is None else Guidance(guidance, guidance_components, annealed, temperature),
        batch_size=batch_size,
        denoise=sigma,
    )
    save_grid(drawn.images, out, math.ceil(math.sqrt(count)), scale=max(1, 32 // drawn.images.shape[-1]))
    return f"{out}: {count} samples in {drawn.wall_s:.2f} s, {drawn.fpe:.2f} forward-pass equivalents each"


def _number(text: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise HarnessError(f"{option} takes numbers, not '{text}'") from error
    if option == "--labels" and value != int(value):
        raise HarnessError(f"{option} takes whole numbers, not '{text}'")
    return value


def _turns(labels: Sequence[int], indices: range) -> Tensor:
    if not labels:
        raise HarnessError("labels were asked for but none is given")
    return torch.tensor([labels[index % len(labels)] for index in indices])
