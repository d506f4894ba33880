"""The training loop: averaged weights, a curve that a resume continues, and whatever target is given."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from harness.errors import CheckpointError, HarnessError
from harness.files import locked, make_folder
from harness.training.config import FlowTraining
from harness.training.data import Batches
from harness.training.folder import Row, TrainingFolder
from harness.training.release import Release
from harness.training.targets import Decode, Target, target_of

MOST_SKIPPED = 10
"""Steps in a row whose gradient is not finite, after which a training gives up; each leaves the weights as they are."""


class Objective(nn.Module):
    """What is minimised, as one call, so that a launcher can wrap it: a batch to a scalar loss in nats.

    Where it is `reduced`, the network's products are computed in bfloat16.
    """

    def __init__(self, target: Target, network: nn.Module, reduced: bool) -> None:
        super().__init__()
        self.target, self.network, self.reduced = target, network, reduced

    def forward(self, *batch: Tensor) -> Tensor:
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=self.reduced):
            return self.target.loss(self.network, *batch).float()


def train(
    name: str,
    config: FlowTraining,
    folder: Path,
    decode: Decode,
    command: str,
    root: Path | None = None,
    resume: bool = False,
    skip_corrupt: bool = False,
) -> Path:
    """Train a flow and release it; the folder with the released files.

    Under ``accelerate launch`` every process runs this, and the first one writes. Raises HarnessError: the data cannot
    be read, `folder` is another run's or not writable, or the loss is not finite.

    Args:
        name: what the released files are called.
        config: what to train.
        folder: the run folder: the state to continue from, the curve, sample grids, and `release/` with the weights,
            the model card and the snapshots.
        decode: how samples are drawn: ``build_decoder("sequential").decode``.
        command: what the model card names as the command that made the flow.
        root: where the dataset lies, see `load_dataset`.
        resume: continue the run in `folder`; its curve is that of a run that was never interrupted.
        skip_corrupt: leave unreadable images out; the weights' metadata and the model card say how many.
    """
    try:
        accelerator = Accelerator(mixed_precision="no")  # which precision is the objective's business
    except (RuntimeError, ValueError, KeyError) as error:  # as for a device that ACCELERATE_* names and is not there
        raise HarnessError(f"accelerate finds no device to train on: {error}") from error
    with limited_threads(config.threads):
        target = target_of(config, root, skip_corrupt)
        files = TrainingFolder(folder, target.measure)
        release = Release(name, target, folder / "release", decode, command)
        run = _Run(target, files, release, accelerator)
        if run.main:
            make_folder(folder)
        with locked(folder, "trains in") if run.main else nullcontext():
            start = run.begin(resume)
            if run.main:
                release.prepare(resume)
            run.train(start)
            if run.main:
                release.write(run.averaged, files.rows())
        accelerator.wait_for_everyone()
    return release.folder


class _Run:
    """The state of one training; `train` brings it to the end."""

    def __init__(self, target: Target, files: TrainingFolder, release: Release, accelerator: Accelerator) -> None:
        self.target, self.config, self.files, self.release = target, target.config, files, release
        self.accelerator, self.main = accelerator, bool(accelerator.is_main_process)
        if self.config.batch_size < accelerator.num_processes:
            raise HarnessError(
                f"batch_size = {self.config.batch_size} cannot be shared by {accelerator.num_processes} processes"
            )
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            self.network = target.network().to(accelerator.device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        self._here = target.place(accelerator.device).type == "cpu"  # what is made where it is learned needs no help
        decay, parameters = self.config.weight_decay, self.network.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=decay, fused=target.fused)
        auto = accelerator.device.type == "cuda" and torch.cuda.is_bf16_supported()
        reduced = {"auto": auto, "float32": False, "bfloat16": True}[self.config.precision]
        self.objective, self.optimizer = accelerator.prepare(Objective(target, self.network, reduced), optimizer)
        self._skipped = 0
        self._stateful = {"flow": self.network, "ema": self.averaged, "optimizer": self.optimizer}

    def train(self, start: int) -> None:
        config, accelerator = self.config, self.accelerator
        loader = DataLoader(
            Batches(self.target.batch, accelerator.process_index, accelerator.num_processes),
            batch_size=None,
            sampler=range(start, config.steps),
            num_workers=config.workers if self._here else 0,
            pin_memory=self._here and accelerator.device.type == "cuda",
        )
        # Only the first process writes; the others never call this.
        writer: Any = self.files.writer(start) if self.main else nullcontext()
        with writer as write, progress(start, config.steps, self.main, self.target) as show:
            clocks = time.perf_counter(), time.process_time()
            for step, batch in enumerate(loader, start=start + 1):
                row = self._step(step, batch)
                row |= {"wall_s": time.perf_counter() - clocks[0], "cpu_s": time.process_time() - clocks[1]}
                if self.main:
                    write(row := row | {self.target.measure: self._keep(step)})
                    if step % config.checkpoint_every == 0 or step == config.steps:
                        self._save(step)
                    show(row)
                clocks = time.perf_counter(), time.process_time()

    @property
    def _last(self) -> str:
        there = self.files.checkpoint.exists()
        kept = f"'{self.files.checkpoint}' holds the last state that was saved" if there else "no state was saved yet"
        return f"{kept}. A lower learning_rate or a longer warmup may help"

    @property
    def _data(self) -> dict[str, str]:
        return {"data": self.target.digest, "held_out": self.target.tested}

    def begin(self, resume: bool) -> int:
        """The step to go on from, 0 for a new run; what was stored is loaded."""
        state = self.files.state(self.config, self._data, resume, self.accelerator.device)
        if state is None:
            return 0
        try:
            for key, module in self._stateful.items():
                module.load_state_dict(state[key])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"'{self.files.checkpoint}' is no state of this training: {reason}") from error
        return int(state["step"])

    def _save(self, step: int) -> None:
        if not all(tensor.isfinite().all() for tensor in self.network.state_dict().values()):
            raise HarnessError(f"the weights of step {step} are not finite; {self._last}")
        facts = {"step": step, "config": self.config.model_dump_json()} | self._data
        self.files.save(facts | {key: module.state_dict() for key, module in self._stateful.items()})

    def _step(self, step: int, batch: list[Tensor]) -> Row:
        """One update; `step` counts from 1."""
        config, accelerator = self.config, self.accelerator
        rate = config.learning_rate_at(step - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.objective(*(tensor.to(accelerator.device, non_blocking=True) for tensor in batch))
        self.optimizer.zero_grad()
        accelerator.backward(loss)
        norm = float(accelerator.clip_grad_norm_(self.objective.parameters(), config.grad_clip))
        value = float(accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            raise HarnessError(f"the loss of step {step} is {value}; {self._last}")
        if math.isfinite(norm):
            self.optimizer.step()
            average(
                self.averaged, self.network, min(config.ema, step / (step + 9))
            )  # short at first: forgets the start
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped == MOST_SKIPPED:
            raise HarnessError(f"the gradients of {MOST_SKIPPED} steps up to step {step} are not finite; {self._last}")
        return {"step": step, "loss": value, "learning_rate": rate, "grad_norm": norm}

    def _keep(self, step: int) -> float | None:
        """Store what is due after `step`, snapshots and samples; the measure, where it is evaluated."""
        config = self.config
        for fraction, due in zip(config.snapshots, config.snapshot_steps, strict=True):
            if step == due:
                self.release.snapshot(self.averaged, fraction, step)
        if step % config.evaluate_every and step != config.steps:
            return None
        self.release.samples(self.averaged, self.files.path / f"samples-{step:07d}.png")
        return self.target.evaluate(self.averaged)


@torch.no_grad()
def average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of parameters and buffers; masks and orders stay as they are."""
    states = zip(averaged.state_dict().values(), network.state_dict().values(), strict=True)
    means, now = zip(*((mean, current) for mean, current in states if mean.is_floating_point()), strict=True)
    get_ema_multi_avg_fn(decay)(means, now, 0)  # all at once: one by one they are hundreds of kernels


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """CPU threads within the block; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def progress(start: int, steps: int, shown: bool, target: Target) -> Iterator[Any]:
    """A function that shows a row: a bar with the time left, and a line for each in which the target is judged."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("training", total=steps, completed=start, loss="")

        def show(row: Row) -> None:
            loss = f"loss {row['loss']:.4f}"
            bar.update(task, completed=row["step"], loss=loss)
            if (value := row[target.measure]) is not None:
                bar.console.print(f"step {row['step']}: {loss}, {value:.4f} {target.unit}")

        yield show
