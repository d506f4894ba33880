"""Commands that make what is measured or read: train, train-features, download, calibrate, tune."""

from __future__ import annotations

import re
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.app import FOLDER, Budget, Value, app, data_root, dataset, threads, weights
from harness.cli.completion import names
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.flows import CausalFlow


@app.command()
@click.argument("config", metavar="CONFIG|DATASET", shell_complete=names("training", files=True))
@click.option("--out", type=FOLDER, help="Run folder; by default runs/NAME.")
@click.option("--resume", is_flag=True, help="Continue the run in the folder; a finished one is released again.")
@data_root
@click.option("--steps", type=Value("Count"), help="In place of the configuration's.")
@click.option("--seed", type=Value("Seed"), help="In place of the configuration's.")
@click.option("--threads", type=Value("Processes"), help="CPU threads, in place of the configuration's.")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any key of the configuration, as decode_weight=0.1; may be repeated.",
)
@click.option("--skip-corrupt", is_flag=True, help="Leave unreadable images out; the model card says how many.")
def train(
    config: str,
    out: Path | None,
    resume: bool,
    root: Path | None,
    skip_corrupt: bool,
    settings: tuple[str, ...],
    **overrides: int | None,
) -> None:
    """Train a flow: a shipped configuration by name, or a TOML file of your own."""
    from harness.decoders import build_decoder
    from harness.training.config import command_line, read_config
    from harness.training.loop import train

    name, parsed = read_config(config, **overrides, **_settings(settings))
    command, decode = command_line(config, *settings, **overrides), build_decoder("sequential").decode
    folder = train(name, parsed, out or Path("runs") / name, decode, command, root, resume, skip_corrupt)
    print(f"{folder / name}.safetensors, with its model card {name}.md and samples where there are images")


def _settings(given: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a configuration that KEY=VALUE give, values as `parse_value` reads them."""
    from harness.options import parse_value

    pairs = [setting.partition("=") for setting in given]
    if bad := next((setting for setting in given if not re.match(r"\s*\w+\s*=", setting)), None):
        raise HarnessError(f"--set {bad!r} should read key=value, as decode_weight=0.1")
    return {key.strip(): parse_value(value.strip()) for key, _, value in pairs}


@app.command()
@click.argument("dataset", shell_complete=names("datasets"))
@data_root
def download(dataset: str, root: Path | None) -> None:
    """Fetch a dataset's files from its publisher and check them, where that is allowed: cifar10, cifar100."""
    from harness.datasets import datasets

    print(datasets.get(dataset)(root=root).download())


@app.command("train-features")
@click.argument("dataset", shell_complete=names("datasets"))
@click.option("--out", type=FOLDER, help="Folder; by default the user's own.")
@data_root
@click.option("--seed", type=Value("Seed"), default=0, show_default=True)
@click.option("--epochs", type=Value("Count"), help="In place of the recipe's.")
@click.option("--size", type=Value("Batch"), help="Side of the images, in place of the recipe's or their own.")
@click.option("--skip-corrupt", is_flag=True, help="Leave unreadable images out and say how many.")
def train_features_command(dataset: str, out: Path | None, **options: Any) -> None:
    """Train the small network whose features FID and KID compare where Inception's weights are not at hand."""
    from harness.metrics.features import own_networks
    from harness.training.features import train_features

    path = train_features(dataset, out or own_networks(), report=partial(print, flush=True), **options)
    print(f"{path}, with its card {path.stem}.md and its sanity table {path.stem}.csv")


@app.command("calibrate")
@click.argument("flow", metavar="FLOW", shell_complete=names("flows", "published", files=True))
@click.option("--samples", type=Value("CalibrationSamples"), help="Decoded exactly; by default as many as it takes.")
@click.option("--seed", type=Value("Seed"), default=0, show_default=True)
@click.option("--seconds", type=Value("NonNegative"), help="Learning corrections may take; 0: linear ones alone.")
@weights
def calibrate_command(flow: str, samples: int | None, seed: int, seconds: float | None, weights: str | None) -> None:
    """Fit guesses and corrections to FLOW, for initial="fitted", correction="fitted" or "learned", and 'fitted'."""
    from harness.fitting.calibrate import store_calibration
    from harness.progress import reporter

    loaded = _fitted_to(flow, weights=weights)
    with reporter() as progress:
        path = store_calibration(loaded, samples, seed, progress, learned=seconds != 0, seconds=seconds)
    print(path)


@app.command("tune")
@click.argument("flow", metavar="FLOW", shell_complete=names("flows", "published", files=True))
@click.option("--batch", "batches", type=Value("Batch"), required=True, multiple=True,
              help="Samples decoded together; may be repeated.")  # fmt: skip
@click.option("--budget", "budgets", type=Budget("NonNegative"), multiple=True, default=["sejd"], show_default=True,
              help="RMSE to the exact sample, or 'sejd' for SeJD's at tau 0.5; may be repeated.")  # fmt: skip
@click.option("--samples", type=Value("TuningSamples"), help="Tuned on, and held out; by default as many as it takes.")
@click.option("--seconds", type=Value("Positive"), default=60, show_default=True,
              help="That measuring what was chosen may take, about.")  # fmt: skip
@click.option("--out", type=FOLDER, help="Run folder of that; by default runs/tune-NAME, or the next that is free.")
@dataset
@click.option("--data-root", help="Where the real images lie; by default $HARNESS_DATA.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@weights
@threads
def tune_command(
    flow: str, batches: tuple[int, ...], budgets: tuple[float | None, ...], samples: int | None,
    device: str, weights: str | None, threads: int | None, out: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Measure how each layer of FLOW is decoded fastest within a budget, for the decoder 'auto'.

    What was chosen is then measured beside sequential and SeJD, and told in a sentence.
    """
    import torch

    from harness.cli.face import print_choice, recommend
    from harness.decoders import build_decoder
    from harness.fitting import prepare
    from harness.fitting.tune import Tuner, store_schedule
    from harness.measure.recommend import CLASSIC
    from harness.measure.sources import table_of
    from harness.progress import reporter
    from harness.runs.store import require_new

    torch.set_num_threads(threads or torch.get_num_threads())
    loaded = _fitted_to(flow, device, weights)
    if out is not None:
        require_new(out)
    if options["dataset"] is not None:
        table_of(flow, options["dataset"])
    with reporter() as progress:
        # candidates read the calibration
        prepare(build_decoder("fitted", correction="learned"), loaded, max(batches), progress.note, progress)
        tuner = Tuner(loaded, samples, reporter=progress)
        schedules = [store_schedule(loaded, tuner.schedule(*choice)) for choice in product(batches, budgets)]
    for path in schedules:
        assert path is not None  # it has a checkpoint
        print(f"{path.read_text(encoding='utf-8')}\nstored as {path}\n")
    found = recommend(
        flow, batches=batches, budgets=budgets, candidates=CLASSIC, device=device, threads=threads, out=out,
        name="tune", weights=weights, **options,
    )  # fmt: skip
    print_choice(found.run)


def _fitted_to(flow: str, device: str = "cpu", weights: str | None = None) -> CausalFlow:
    """A flow, after it was seen that what is fitted to it can be stored."""
    from harness.decoders.stored import storage
    from harness.files import require_writable
    from harness.flows import load_flow

    loaded = load_flow(flow, device, weights=weights)
    assert loaded.source is not None
    require_writable(storage(loaded.source, "").parent)
    return loaded
