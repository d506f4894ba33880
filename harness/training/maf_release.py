"""What is kept of the training of a masked autoregressive flow: the weights, a model card, samples if it has images."""

from __future__ import annotations

import copy
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from harness.datasets.images import save_grid
from harness.flows.zuko_flow import checkpoint_metadata
from harness.training.data import SAMPLES, seeded
from harness.training.folder import replacing
from harness.training.maf_config import MafConfig
from harness.training.release import Decode, curve_lines, in_order
from harness.training.targets import Target

GRID, SCALE = 64, 16


@dataclass(frozen=True)
class MafRelease:
    """The released files of a training.

    Args:
        name: of the files: NAME.safetensors, NAME.md, and NAME.png of a flow of images.
        config: what was trained.
        target: what it was trained towards.
        folder: where the files are written.
        decode: how samples are drawn, exactly: ``build_decoder("sequential").decode``.
        command: the command that made the flow.
    """

    name: str
    config: MafConfig
    target: Target
    folder: Path
    decode: Decode
    command: str

    def write(self, ema: nn.Module, curve: list[dict[str, str]]) -> None:
        """Everything; the figures are those of the weights as stored."""
        dtype = getattr(torch, self.config.storage)
        state = {
            name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in ema.state_dict().items()
        }
        stored = copy.deepcopy(ema)
        stored.load_state_dict(state)
        facts = self.target.facts() | {
            "command": self.command,
            "seed": self.config.seed,
            "step": self.config.steps,
            self.target.measure: round(self.target.evaluate(stored), 4),
            "config": self.config.model_dump(mode="json", exclude={"remark"}),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / f"{self.name}.safetensors") as partial:
            metadata = checkpoint_metadata(self.config.activation, **facts)
            partial.write_bytes(in_order(save(state, metadata | {"dataset": self.config.dataset or self.name})))
        pictured = self._samples(stored)
        (self.folder / f"{self.name}.md").write_text(self._card(stored, curve, pictured), encoding="utf-8")

    def _samples(self, maf: nn.Module) -> bool:
        """A grid of exact samples; False when the data are no images."""
        flow = self.target.flow(maf)
        if flow.image_shape is None:
            return False
        images = self.decode(flow, flow.sample_latents(GRID, seeded(self.config.seed, SAMPLES))).images
        save_grid(images, self.folder / f"{self.name}.png", columns=8, scale=SCALE)
        return True

    def _card(self, maf: nn.Module, curve: list[dict[str, str]], pictured: bool) -> str:
        config, target = self.config, self.target
        parameters = sum(parameter.numel() for parameter in maf.parameters())
        megabytes = (self.folder / f"{self.name}.safetensors").stat().st_size / 1e6
        seconds = sum(float(row["cpu_s"]) for row in curve)
        threads = f"{config.threads or 'all'} thread{'' if config.threads == 1 else 's'}"
        rows = [
            *target.results(maf, self.decode),
            ("steps, batch", f"{config.steps:,}, {config.batch_size}"),
            ("seed", str(config.seed)),
            ("trained in", f"{seconds / 60:.1f} minutes of processor time, the sum of its steps ({threads})"),
            ("with", f"torch {torch.__version__}, {platform.machine()}"),
        ]
        lines = [
            f"# {self.name}",
            "",
            f"A masked autoregressive flow built with zuko of {target.title()}: L = {target.features} tokens of D = 1 "
            f"numbers, K = {config.transforms} flow layers, hidden layers of {', '.join(map(str, config.hidden))} "
            f"units ({config.activation}), {parameters:,} parameters, stored as {config.storage} "
            f"({megabytes:.1f} MB). Written by the command that trained it:",
            "",
            f"    {self.command}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            f"| step | training loss, mean since the row above | {target.unit} |",
            "|---|---|---|",
            *curve_lines(curve, target.measure),
            "",
            *([f"![samples]({self.name}.png)", "", "Exact (sequential) samples.", ""] if pictured else []),
            *([config.remark.strip(), ""] if config.remark else []),
            "Configuration:",
            "",
            "```json",
            json.dumps(config.model_dump(mode="json", exclude={"remark"}), indent=1),
            "```",
        ]
        return "\n".join(lines) + "\n"
