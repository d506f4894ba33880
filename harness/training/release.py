"""What is kept of a training: the weights, a model card, samples to look at."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from harness.datasets.images import save_grid
from harness.flows.tarflow import TarFlow
from harness.training.config import TrainingConfig
from harness.training.data import SAMPLES, seeded
from harness.training.folder import BITS, replacing
from harness.training.likelihood import Splits

Decode = Callable[..., Any]
"""``Decoder.decode``: flow, latents (B, L, D), labels -> a result with `images` (B, C, H, W)."""

COLUMNS, ROWS, GRID_SIDE = 8, 8, 1100


@dataclass(frozen=True)
class Release:
    """The released files of a training.

    Args:
        name: of the files: NAME.safetensors, NAME.md, NAME.png.
        config: what was trained.
        splits: what bits per dimension are measured on.
        folder: where the files are written.
        decode: how samples are drawn, exactly: ``build_decoder("sequential").decode``.
        command: the command that made the flow.
        skipped: corrupt images that were left out.
    """

    name: str
    config: TrainingConfig
    splits: Splits
    folder: Path
    decode: Decode
    command: str
    skipped: int = 0

    def write(self, ema: TarFlow, curve: list[dict[str, str]]) -> None:
        """Weights, samples and card at the end of training; the figures are those of the weights as stored."""
        flow = self._stored(ema)
        held_out, train = self.splits.held_out_bits_per_dim(flow), self.splits.train_bits_per_dim(flow)
        self._save(flow, self.name, self.config.steps, held_out)
        self.samples(flow, self.folder / f"{self.name}.png")
        text = self._card(flow, ema.var.device.type, curve, held_out, train)
        (self.folder / f"{self.name}.md").write_text(text, encoding="utf-8")

    def snapshot(self, ema: TarFlow, fraction: float, step: int) -> None:
        """The averaged weights after a fraction of the training, as NAME-PERCENTpct, and their samples."""
        flow, name = self._stored(ema), self.snapshot_name(fraction)
        self._save(flow, name, step, self.splits.held_out_bits_per_dim(flow))
        self.samples(flow, self.folder / f"{name}.png")

    def snapshot_name(self, fraction: float) -> str:
        """Such as ``"cifar10-jpeg-5pct"``."""
        return f"{self.name}-{100 * fraction:g}pct"

    @torch.no_grad()
    def samples(self, flow: TarFlow, path: Path) -> None:
        """A grid of samples, a class to a row; to its right the same after one denoising step, if that is defined."""
        rows = min(flow.num_classes, 10) or ROWS
        labels = torch.arange(rows).repeat_interleave(COLUMNS).to(flow.var.device) if flow.num_classes else None
        latents = flow.sample_latents(rows * COLUMNS, seeded(self.config.seed, SAMPLES))
        images = self.decode(flow, latents, labels).images
        columns = COLUMNS
        if self.config.noise == "gaussian":
            denoised = flow.denoise(images, self.config.sigma, labels)
            pairs = torch.stack([images.unflatten(0, (rows, COLUMNS)), denoised.unflatten(0, (rows, COLUMNS))], dim=1)
            images, columns = pairs.flatten(0, 2), 2 * COLUMNS
        save_grid(images, path, columns, scale=max(1, GRID_SIDE // (columns * images.shape[-1])))

    def _stored(self, ema: TarFlow) -> TarFlow:
        """A copy of the flow with its weights rounded to the dtype that they are stored in."""
        dtype = getattr(torch, self.config.storage)
        state = {name: tensor.detach().to(dtype).float() for name, tensor in ema.state_dict().items()}
        return TarFlow.from_state(state, {})

    def _save(self, flow: TarFlow, name: str, step: int, held_out: float) -> None:
        dtype = getattr(torch, self.config.storage)
        state = {key: tensor.to("cpu", dtype).contiguous() for key, tensor in flow.state_dict().items()}
        metadata = {
            "dataset": self.config.dataset,
            "dataset_digest": self.splits.train.digest,
            "seed": str(self.config.seed),
            "sigma": str(self.config.sigma),
            "noise": self.config.noise,
            "command": self.command,
            "step": str(step),
            "held_out_bits_per_dim": f"{held_out:.4f}",
            "config": self.config.model_dump_json(exclude={"remark"}),
        } | ({"skipped_images": str(self.skipped)} if self.skipped else {})
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / f"{name}.safetensors") as partial:
            partial.write_bytes(in_order(save(state, metadata)))

    def _card(self, flow: TarFlow, device: str, curve: list[dict[str, str]], held_out: float, train: float) -> str:
        config, splits = self.config, self.splits
        threads = f"{config.threads or 'all'} thread{'' if config.threads == 1 else 's'}"
        where = f"a processor ({threads})" if device == "cpu" else device
        parameters = sum(parameter.numel() for parameter in flow.parameters())
        bytes_ = (self.folder / f"{self.name}.safetensors").stat().st_size
        hours = sum(float(row["wall_s"]) for row in curve) / 3600
        images = " x ".join(map(str, flow.image_shape))
        classes = f"{flow.num_classes} classes" if flow.num_classes else "unconditional"
        lines = [
            f"# {self.name}",
            "",
            f"A TarFlow ({config.shape}: patch, channels, blocks, layers per block) of {images} images, {classes}: "
            f"L = {flow.num_tokens} tokens of D = {flow.token_dim} numbers, K = {flow.num_layers} flow layers, "
            f"{parameters:,} parameters, stored as {config.storage} ({bytes_ / 1e6:.1f} MB). "
            "Written by the command that trained it:",
            "",
            f"    {self.command}",
            "",
            "| | |",
            "|---|---|",
            f"| training images | {config.dataset}, {len(splits.train):,}, SHA-256 {splits.train.digest[:16]} |",
            *([f"| corrupt images left out | {self.skipped:,} |"] if self.skipped else []),
            f"| held-out bits/dim | {held_out:.4f} on {len(splits.held_out):,} images of the test split |",
            f"| of these, the noise's own | {splits.noise_bits_per_dim():.4f}, the least that any flow can reach |",
            f"| training bits/dim | {train:.4f} on as many training images |",
            f"| noise | {config.noise}, sigma {config.sigma} in image units ([-1, 1]) |",
            f"| steps, batch | {config.steps:,}, {config.batch_size} |",
            f"| seed | {config.seed} |",
            f"| trained in | {hours:.2f} hours of wall clock, the sum of its steps, on {where} |",
            f"| with | torch {torch.__version__}, {platform.machine()} |",
            "",
            "Bits per dimension are an upper bound on the code length of the discrete pixels, with the noise above as "
            "dequantisation (`harness/flows/training/likelihood.py` derives it); they are those of the averaged "
            "weights as stored, given the labels where there are classes, and no ranking against flows of other noise.",
            "",
            "| step | training loss, mean since the row above | held-out bits/dim |",
            "|---|---|---|",
            *curve_lines(curve, BITS),
            "",
            *self._snapshot_lines(),
            f"![samples]({self.name}.png)",
            "",
            f"Exact (sequential) samples, "
            f"{'a class to a row' if flow.num_classes else 'unconditional'}"
            f"{'; right half: the same after one denoising step' if config.noise == 'gaussian' else ''}. "
            f"{config.remark}".strip(),
            "",
            "Configuration:",
            "",
            "```json",
            json.dumps(config.model_dump(exclude={"remark"}), indent=1),
            "```",
        ]
        return "\n".join(lines) + "\n"

    def _snapshot_lines(self) -> list[str]:
        """A line of the card for every snapshot, with the figures that its file states."""
        lines = []
        for fraction in self.config.snapshots:
            name = self.snapshot_name(fraction)
            with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
                stated = file.metadata()
            lines.append(
                f"- `{name}`: the averaged weights after {stated['step']} steps, "
                f"{stated['held_out_bits_per_dim']} bits/dim held out"
            )
        return ["Snapshots of the training, beside the weights:", "", *lines, ""] if lines else []


def curve_lines(curve: list[dict[str, str]], measure: str) -> list[str]:
    """A line of the card for every evaluation: the step, the mean loss since the last one, the measure."""
    lines, losses = [], []
    for row in curve:
        losses.append(float(row["loss"]))
        if row[measure]:
            lines.append(f"| {row['step']} | {fmean(losses):.4f} | {float(row[measure]):.4f} |")
            losses = []
    return lines


def in_order(file: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in an order of its own each time, and a
    checkpoint is known by its digest.
    """
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + size :]
