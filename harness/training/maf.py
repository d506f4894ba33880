"""Training of masked autoregressive flows; the network is zuko's `MAF`, what is minimised is the target's."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path

import torch
from torch import nn

from harness.errors import HarnessError
from harness.training.folder import Row, TrainingFolder
from harness.training.maf_config import MafConfig
from harness.training.maf_release import MafRelease
from harness.training.release import Decode
from harness.training.running import average, decay_at, limited_threads, progress
from harness.training.targets import Target, target_of

CPU_TIME = "cpu_s"
"""Column of the curve: seconds of processor time, which other work on the machine does not change much."""


def train_maf(
    name: str,
    config: MafConfig,
    folder: Path,
    decode: Decode,
    command: str,
    root: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train a masked autoregressive flow and release it, as `harness.training.loop.train` does a TarFlow.

    Returns:
        The folder with the released files.

    Raises:
        HarnessError: the images cannot be read, zuko is missing, the folder holds another run, or the loss is not
            finite.
    """
    with limited_threads(config.threads):
        target = target_of(config, root)
        run = _Run(config, target, TrainingFolder(folder, (target.measure, CPU_TIME)))
        run.train(resume)
        release = MafRelease(name, config, target, folder / "release", decode, command)
        release.write(run.ema, run.folder.rows())
    return release.folder


def new_maf(config: MafConfig, features: int) -> nn.Module:
    """zuko's `MAF` with weights drawn by the configuration's seed.

    Raises:
        HarnessError: zuko is not installed, or a hidden layer is too narrow for every feature to count.
    """
    try:
        from zuko.flows import MAF
    except ImportError as error:
        raise HarnessError("training it needs zuko: pip install 'nf-decoding-harness[zuko]'") from error
    if min(config.hidden) < features - 1:
        raise HarnessError(
            f"hidden = {list(config.hidden)}: layers of a network of {features} features need {features - 1} units or "
            "more, or the later features would see only the first ones"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MAF(
            features=features,
            transforms=config.transforms,
            hidden_features=config.hidden,
            activation=getattr(nn, config.activation),
        )


class _Run:
    """The state of one training; `train` brings it to the end."""

    def __init__(self, config: MafConfig, target: Target, folder: TrainingFolder) -> None:
        self.config, self.target, self.folder = config, target, folder
        self.flow = new_maf(config, target.features)
        self.ema = copy.deepcopy(self.flow).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.flow.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )

    def train(self, resume: bool) -> None:
        config, target = self.config, self.target
        start = self._continue(resume)
        with (
            self.folder.writer(start) as write,
            progress(start, config.steps, True, target.measure, target.unit) as show,
        ):
            for step in range(start + 1, config.steps + 1):
                row = self._step(step)
                due = step % config.evaluate_every == 0 or step == config.steps
                row[target.measure] = target.evaluate(self.ema) if due else None
                write(row)
                if step % config.checkpoint_every == 0 or step == config.steps:
                    self._save(step)
                show(row)

    def _continue(self, resume: bool) -> int:
        """Take up the stored state, if there is one; the number of steps done."""
        state = self.folder.state(self.config, resume, torch.device("cpu"))
        if state is None:
            return 0
        for name, module in self._modules.items():
            module.load_state_dict(state[name])
        return int(state["step"])

    def _save(self, step: int) -> None:
        state = {name: module.state_dict() for name, module in self._modules.items()}
        self.folder.save({"step": step, "config": self.config.model_dump_json(), **state})

    @property
    def _modules(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"flow": self.flow, "ema": self.ema, "optimizer": self.optimizer}

    def _step(self, step: int) -> Row:
        """One update; `step` counts from 1."""
        began, began_cpu, config = time.perf_counter(), time.process_time(), self.config
        rate = config.learning_rate_at(step - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.target.loss(self.flow, step - 1)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.flow.parameters(), config.grad_clip)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise HarnessError(
                f"the loss of step {step} is {value}; '{self.folder.checkpoint}' holds the last state that was saved. "
                "A lower learning_rate or a longer warmup may help"
            )
        self.optimizer.step()
        average(self.ema, self.flow, decay_at(step, config.ema))
        return {
            "step": step,
            "loss": value,
            "learning_rate": rate,
            "grad_norm": float(norm),
            "wall_s": time.perf_counter() - began,
            CPU_TIME: time.process_time() - began_cpu,
        }
