"""What is kept of a training: the weights, a model card, samples to look at."""

from __future__ import annotations

import copy
import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from harness.datasets.images import save_grid
from harness.errors import HarnessError, StoreError
from harness.files import in_order, replacing, require_writable, write_text
from harness.training.config import TrainingConfig, percent
from harness.training.targets import Decode, Samples, Target
from harness.training.targets.base import device_of

GRID_SIDE = 1024
"""Pixels of a grid's side, about."""


@dataclass(frozen=True)
class Release:
    """The released files of a training: NAME.safetensors, NAME.md, and NAME.png of a flow of images."""

    name: str
    target: Target
    folder: Path
    """Where the files are written; it exists."""
    decode: Decode
    """How samples are drawn, exactly: ``build_decoder("sequential").decode``."""
    command: str
    """That made the flow."""

    @property
    def config(self) -> TrainingConfig:
        return self.target.config

    def prepare(self, resume: bool) -> None:
        """Make the folder; a `StoreError` where it, or a file that will be released, cannot be written, or is there."""
        require_writable(self.folder)  # a read-only or full folder is told now, not at the end
        for name in (self.name, *map(self._snapshot_name, self.config.snapshots)):
            for kind in ("safetensors", "md", "png"):
                path = self.folder / f"{name}.{kind}"
                if path.exists() and not (resume and path.is_file()):
                    raise StoreError(f"'{path}' is there already; --out names another folder")

    def write(self, averaged: nn.Module, curve: list[dict[str, str]]) -> None:
        """Weights, samples and card at the end of training; the figures are those of the weights as stored."""
        stored, score = self._save(self.name, averaged, self.config.steps)
        samples = self.samples(stored, self.folder / f"{self.name}.png")
        write_text(self.folder / f"{self.name}.md", self._card(stored, score, samples, curve))

    def snapshot(self, averaged: nn.Module, fraction: float, step: int) -> None:
        """The averaged weights after a fraction of the training, and their samples."""
        name = self._snapshot_name(fraction)
        stored, _ = self._save(name, averaged, step)
        self.samples(stored, self.folder / f"{name}.png")

    def samples(self, network: nn.Module, path: Path) -> Samples | None:
        with torch.no_grad():
            samples = self.target.samples(network, self.decode)
        if samples is not None:
            side = samples.columns * samples.images.shape[-1]
            save_grid(samples.images, path, samples.columns, scale=max(1, GRID_SIDE // side))
        return samples

    def _plain(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", exclude={"remark"})

    def _snapshot_name(self, fraction: float) -> str:
        return f"{self.name}-{percent(fraction)}"

    def _save(self, name: str, averaged: nn.Module, step: int) -> tuple[nn.Module, float]:
        """Write the weights; a network of them, rounded to the dtype that they are stored in, and its score."""
        dtype = getattr(torch, self.config.storage)
        state = {
            key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
            for key, tensor in averaged.state_dict().items()
        }
        stored = copy.deepcopy(averaged)
        stored.load_state_dict(state)
        score = self.target.evaluate(stored)
        if not math.isfinite(score):
            raise HarnessError(
                f"the flow of step {step} has {score} {self.target.unit}, so '{name}' is not released; a lower "
                "learning_rate, a longer warmup or more steps may help"
            )
        facts = {"command": self.command, "step": step, self.target.measure: round(score, 4), "config": self._plain()}
        flat = {"step": str(step), self.target.measure: f"{score:.4f}"}
        with replacing(self.folder / f"{name}.safetensors") as partial:
            partial.write_bytes(in_order(save(state, flat | self.target.metadata(facts))))
        return stored, score

    def _card(self, stored: nn.Module, score: float, samples: Samples | None, curve: list[dict[str, str]]) -> str:
        config, target, flow = self.config, self.target, self.target.flow(stored)
        minutes, cpu_minutes = (sum(float(row[key] or 0) for row in curve) / 60 for key in ("wall_s", "cpu_s"))
        threads = f"{config.threads or 'all'} thread{'' if config.threads == 1 else 's'}"
        device = device_of(stored).type
        parameters = sum(parameter.numel() for parameter in stored.parameters())
        images_per_s = config.batch_size / median(float(row["wall_s"]) for row in curve)
        megabytes = (self.folder / f"{self.name}.safetensors").stat().st_size / 1e6
        skipped = sum(not math.isfinite(float(row["grad_norm"])) for row in curve)
        rows = [
            *target.card_rows(stored, score, self.decode),
            ("steps, batch", f"{config.steps:,}, {config.batch_size}"),
            *([("steps left out, their gradient not finite", f"{skipped:,}")] if skipped else []),
            ("seed", str(config.seed)),
            (
                "trained in",
                f"{minutes:.1f} minutes of wall clock, the sum of its steps, on "
                f"{f'a processor ({threads}, {cpu_minutes:.1f} minutes of its time)' if device == 'cpu' else device}",
            ),
            ("images per second", f"{images_per_s:,.0f}, by the median of its steps"),
            ("with", f"torch {torch.__version__}, {platform.machine()}"),
        ]
        caption = f"Exact (sequential) samples, {samples.caption}. " if samples else ""
        paragraphs = [
            f"# {self.name}",
            f"{target.description}: L = {flow.num_tokens} tokens of D = {flow.token_dim} numbers, K = "
            f"{flow.num_layers} flow layers, {parameters:,} parameters, stored as {config.storage} "
            f"({megabytes:.1f} MB). Written by the command that trained it:",
            f"    {self.command}",
            "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]),
            target.note,
            "\n".join(curve_lines(curve, target)),
            self._snapshots(),
            f"![samples]({self.name}.png)" if samples else "",
            f"{caption}{config.remark}".strip(),
            "Configuration:",
            f"```json\n{json.dumps(self._plain(), indent=1)}\n```",
        ]
        return "\n\n".join(filter(None, paragraphs)) + "\n"

    def _snapshots(self) -> str:
        lines = []
        for name in map(self._snapshot_name, self.config.snapshots):
            with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
                facts = file.metadata()
            score = f"{facts[self.target.measure]} {self.target.unit}"
            lines.append(f"- `{name}`: the averaged weights after {facts['step']} steps, {score}")
        return "\n".join(["Snapshots of the training, beside the weights:", "", *lines]) if lines else ""


def curve_lines(curve: list[dict[str, str]], target: Target) -> list[str]:
    """The card's table of evaluations: the step, the mean loss since the last one, the measure."""
    lines = [f"| step | training loss, mean since the row above | {target.unit} |", "|---|---|---|"]
    losses = []
    for row in curve:
        losses.append(float(row["loss"]))
        if measure := row[target.measure]:
            lines.append(f"| {row['step']} | {fmean(losses):.4f} | {float(measure):.4f} |")
            losses = []
    return lines
