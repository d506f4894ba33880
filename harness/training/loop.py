"""The training loop: maximum likelihood, averaged weights, and a resume that continues the same curve."""

from __future__ import annotations

import copy
import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from harness.datasets import load_dataset
from harness.datasets.base import SPLITS
from harness.errors import HarnessError
from harness.flows.tarflow import TarFlow, TarFlowConfig, negative_log_likelihood
from harness.training.config import TrainingConfig
from harness.training.data import Batches
from harness.training.folder import BITS, Row, TrainingFolder
from harness.training.likelihood import Splits
from harness.training.release import Decode, Release
from harness.training.running import average, decay_at, limited_threads, progress

VAR_RATE = 0.1
"""Of the running mean of z**2, the learned prior of a volume-preserving flow, as in the published training."""

logger = logging.getLogger(__name__)


class Objective(nn.Module):
    """What is minimised, as one call, so that a launcher can wrap it: noisy images to nats per dimension."""

    def __init__(self, flow: TarFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) images and (B,) labels -> the loss, and the mean of z**2 over the batch, (L, D)."""
        latents, logdet = self.flow.encode(images, labels)
        return negative_log_likelihood(latents, logdet), latents.detach().square().mean(dim=0)


def train(
    name: str,
    config: TrainingConfig,
    folder: Path,
    decode: Decode,
    command: str,
    root: Path | None = None,
    resume: bool = False,
    skip_corrupt: bool = False,
) -> Path:
    """Train a flow and release it.

    Under ``accelerate launch`` every process runs this, and the first one writes.

    Args:
        name: what the released files are called.
        config: what to train.
        folder: the run folder: the state to continue from, the curve, sample grids, and `release/` with the weights,
            the model card and the snapshots.
        decode: how sample grids are drawn: ``build_decoder("sequential").decode``.
        command: what the model card names as the command that made the flow.
        root: where the dataset lies, see `load_dataset`.
        resume: continue the run in `folder`; its curve is that of a run that was never interrupted.
        skip_corrupt: leave unreadable images out; the weights' metadata and the model card say how many.

    Returns:
        The folder with the released files.

    Raises:
        HarnessError: the dataset cannot be read, the folder holds another run, or the loss is not finite.
    """
    from accelerate import Accelerator

    bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    precision = {"auto": "bf16" if bfloat16 else "no", "float32": "no", "bfloat16": "bf16"}[config.precision]
    with limited_threads(config.threads):
        train_split, test_split = (
            load_dataset(config.dataset, split, root=root, size=config.size, skip_corrupt=skip_corrupt)
            for split in SPLITS
        )
        skipped = train_split.skipped + test_split.skipped
        if skipped:
            logger.warning("%d corrupt images of '%s' are left out", skipped, config.dataset)
        splits = Splits.of(train_split, test_split, config)
        release = Release(name, config, splits, folder / "release", decode, command, skipped)
        run = _Run(config, splits, TrainingFolder(folder), release, Accelerator(mixed_precision=precision))
        run.train(resume)
        if run.main:
            release.write(run.ema, run.folder.rows())
        run.accelerator.wait_for_everyone()
    return release.folder


class _Run:
    """The state of one training; `train` brings it to the end."""

    def __init__(
        self, config: TrainingConfig, splits: Splits, folder: TrainingFolder, release: Release, accelerator: Any
    ) -> None:
        self.config, self.splits, self.folder, self.release = config, splits, folder, release
        self.accelerator, self.main = accelerator, bool(accelerator.is_main_process)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.flow = TarFlow(flow_config(config, splits)).to(accelerator.device)
        self.ema = copy.deepcopy(self.flow).requires_grad_(False).eval()
        optimizer = torch.optim.AdamW(
            self.flow.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
        )
        self.objective, self.optimizer = accelerator.prepare(Objective(self.flow), optimizer)

    def train(self, resume: bool) -> None:
        config, accelerator = self.config, self.accelerator
        start = self._continue(resume)
        loader = DataLoader(
            Batches(self.splits.train, config, accelerator.process_index, accelerator.num_processes),
            batch_size=None,
            sampler=range(start, config.steps),
            num_workers=config.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        # Only the first process writes; the others never call this.
        writer: Any = self.folder.writer(start) if self.main else nullcontext()
        with writer as write, progress(start, config.steps, self.main, BITS, "bits/dim held out") as show:
            for step, (images, labels) in enumerate(loader, start=start + 1):
                row = self._step(step, images, labels)
                if self.main:
                    row[BITS] = self._keep(step)
                    write(row)
                    if step % config.checkpoint_every == 0 or step == config.steps:
                        self._save(step)
                    show(row)

    def _continue(self, resume: bool) -> int:
        """Take up the stored state, if there is one; the number of steps done."""
        state = self.folder.state(self.config, resume, self.accelerator.device)
        if state is None:
            return 0
        self.flow.load_state_dict(state["flow"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def _save(self, step: int) -> None:
        modules = {"flow": self.flow, "ema": self.ema, "optimizer": self.optimizer}
        state = {key: module.state_dict() for key, module in modules.items()}
        self.folder.save({"step": step, "config": self.config.model_dump_json(), **state})

    def _step(self, step: int, images: Tensor, labels: Tensor) -> Row:
        """One update; `step` counts from 1."""
        began, config, accelerator = time.perf_counter(), self.config, self.accelerator
        rate = config.learning_rate_at(step - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, labels = (tensor.to(accelerator.device, non_blocking=True) for tensor in (images, labels))
        loss, squares = self.objective(images, labels if self.flow.num_classes else None)
        self.optimizer.zero_grad()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.objective.parameters(), config.grad_clip)
        value = float(accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            raise HarnessError(
                f"the loss of step {step} is {value}; '{self.folder.checkpoint}' holds the last state that was saved. "
                "A lower learning_rate or a longer warmup may help"
            )
        self.optimizer.step()
        if config.volume_preserving:
            self.flow.var.lerp_(accelerator.reduce(squares, "mean"), VAR_RATE)
        average(self.ema, self.flow, decay_at(step, config.ema))
        wall_s = time.perf_counter() - began
        return {"step": step, "loss": value, "learning_rate": rate, "grad_norm": float(norm), "wall_s": wall_s}

    def _keep(self, step: int) -> float | None:
        """Store what is due after `step`: snapshots, samples, and the held-out bits per dimension, which it returns."""
        config = self.config
        for fraction, due in zip(config.snapshots, config.snapshot_steps, strict=True):
            if step == due:
                self.release.snapshot(self.ema, fraction, step)
        if step % config.evaluate_every and step != config.steps:
            return None
        self.release.samples(self.ema, self.folder.path / f"samples-{step:07d}.png")
        return self.splits.held_out_bits_per_dim(self.ema)


def flow_config(config: TrainingConfig, splits: Splits) -> TarFlowConfig:
    """The shape of the flow that is trained on some images.

    Raises:
        HarnessError: images that are not square, or no multiple of the patch.
    """
    _, channels, height, width = splits.train.pixels.shape
    if height != width:
        raise HarnessError(f"'{config.dataset}' holds images of {width}x{height}; TarFlow needs squares: give a size")
    return TarFlowConfig(
        image_channels=channels,
        image_size=height,
        patch=config.patch,
        channels=config.channels,
        blocks=config.blocks,
        layers_per_block=config.layers,
        num_classes=splits.num_classes if config.conditional else 0,
        volume_preserving=config.volume_preserving,
    )
