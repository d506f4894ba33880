"""Commands that make what is measured or read: train, train-features, download, calibrate, tune."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import click

from harness.cli.app import FOLDER, app, data_root, threads
from harness.cli.completion import names


class Budget(click.ParamType):
    """A deviation allowed, or ``"sejd"``, which is None."""

    name = "rmse"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        return None if value in (None, "sejd") else click.FloatRange(min=0).convert(value, param, ctx)


@app.command()
@click.argument("config", metavar="CONFIG|DATASET", shell_complete=names("training", files=True))
@click.option("--out", type=FOLDER, help="Run folder; by default runs/NAME.")
@click.option("--resume", is_flag=True, help="Continue the run in the folder; a finished one is released again.")
@data_root
@click.option("--steps", type=int, help="In place of the configuration's.")
@click.option("--seed", type=int, help="In place of the configuration's.")
@click.option("--threads", type=int, help="CPU threads, in place of the configuration's.")
@click.option("--skip-corrupt", is_flag=True, help="Leave unreadable images out; the model card says how many.")
def train(
    config: str, out: Path | None, resume: bool, root: Path | None, skip_corrupt: bool, **overrides: int | None
) -> None:
    """Train a flow: a shipped configuration by name, or a TOML file of your own."""
    from harness.decoders import build_decoder
    from harness.training.config import command_line, read_config
    from harness.training.loop import train

    name, parsed = read_config(config, **overrides)
    command, decode = command_line(config, **overrides), build_decoder("sequential").decode
    folder = train(name, parsed, out or Path("runs") / name, decode, command, root, resume, skip_corrupt)
    click.echo(f"{folder / name}.safetensors, with its model card {name}.md and samples where there are images")


@app.command()
@click.argument("dataset", shell_complete=names("datasets"))
@data_root
def download(dataset: str, root: Path | None) -> None:
    """Fetch a dataset's files from its publisher and check them, where that is allowed: cifar10, cifar100."""
    from harness.datasets import datasets

    click.echo(datasets.get(dataset)(root=root).download())


@app.command("train-features")
@click.argument("dataset", shell_complete=names("datasets"))
@click.option("--out", type=FOLDER, help="Folder; by default the user's own.")
@data_root
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--epochs", type=int, help="In place of the recipe's.")
@click.option("--size", type=int, help="Side of the images, in place of the recipe's or their own.")
@click.option("--skip-corrupt", is_flag=True, help="Leave unreadable images out and say how many.")
def train_features_command(dataset: str, out: Path | None, **options: Any) -> None:
    """Train the small network whose features FID and KID compare where Inception's weights are not at hand."""
    from harness.metrics.features import own_networks
    from harness.training.features import train_features

    path = train_features(dataset, out or own_networks(), report=click.echo, **options)
    click.echo(f"{path}, with its card {path.stem}.md and its sanity table {path.stem}.csv")


@app.command("calibrate")
@click.argument("flow", metavar="FLOW", shell_complete=names("flows", "published", files=True))
@click.option("--samples", type=click.IntRange(min=16), help="Decoded exactly; by default as many as the fit asks for.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def calibrate_command(flow: str, samples: int | None, seed: int) -> None:
    """Fit guesses and corrections to FLOW, for initial="fitted", correction="fitted" and the decoder 'fitted'."""
    from harness.fitting.calibrate import store_calibration
    from harness.flows import load_flow

    click.echo(store_calibration(load_flow(flow), samples, seed))


@app.command("tune")
@click.argument("flow", metavar="FLOW", shell_complete=names("flows", "published", files=True))
@click.option("--batch", "batches", type=click.IntRange(min=1), required=True, multiple=True,
              help="Samples decoded together; may be repeated.")  # fmt: skip
@click.option("--budget", "budgets", type=Budget(), multiple=True, default=["sejd"], show_default=True,
              help="RMSE to the exact sample, or 'sejd' for SeJD's at tau 0.5; may be repeated.")  # fmt: skip
@click.option("--samples", type=click.IntRange(min=8), help="Tuned on, and held out; by default as many as it takes.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@threads
def tune_command(
    flow: str, batches: tuple[int, ...], budgets: tuple[float | None, ...], samples: int | None,
    device: str, threads: int | None,
) -> None:  # fmt: skip
    """Measure how each layer of FLOW is decoded fastest within a budget, for the decoder 'auto'."""
    import torch

    from harness.decoders import build_decoder
    from harness.fitting import prepare
    from harness.fitting.tune import Tuner, store_schedule
    from harness.flows import load_flow

    torch.set_num_threads(threads or torch.get_num_threads())
    loaded = load_flow(flow, device)
    prepare(build_decoder("fitted"), loaded, max(batches))  # candidates read the calibration
    tuner = Tuner(loaded, samples)
    for batch, budget in product(batches, budgets):
        path = store_schedule(loaded, tuner.schedule(batch, budget))
        assert path is not None  # it has a checkpoint
        click.echo(f"{path.read_text()}\nstored as {path}\n")
