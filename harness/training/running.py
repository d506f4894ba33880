"""What training loops share: threads, averaged weights, and what is shown meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from harness.training.folder import Row


@torch.no_grad()
def average(ema: nn.Module, flow: nn.Module, decay: float) -> None:
    """Exponential moving average of parameters and buffers; masks and orders stay as they are."""
    for averaged, current in zip(ema.state_dict().values(), flow.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - decay)


def decay_at(step: int, ema: float) -> float:
    """The average's decay at a step counted from 1: early averages are short, so that the random start is forgotten."""
    return min(ema, step / (step + 9))


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
def progress(start: int, steps: int, shown: bool, measure: str, unit: str) -> Iterator[Any]:
    """A function that shows a row: a bar with the time left, and a line for each that has the `measure`, in `unit`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("training", total=steps, completed=start, loss=math.nan)

        def show(row: Row) -> None:
            bar.update(task, completed=row["step"], loss=row["loss"])
            if (value := row[measure]) is not None:
                bar.console.print(f"step {row['step']}: loss {row['loss']:.4f}, {value:.4f} {unit}")

        yield show
