"""Commands that make what is measured or read: train, train-features, download, calibrate, tune."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.app import FOLDER, Budget, Value, app, data_root, dataset, device, dry_run, threads, weights
from harness.cli.completion import names
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.flows import CausalFlow

TUNE_S, TUNING = 60.0, 2 / 3
"""Seconds of `harness tune`, and the share of them that tuning has where it is bounded; measuring has the rest."""


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
@dry_run
def train(
    config: str, out: Path | None, resume: bool, root: Path | None, skip_corrupt: bool, settings: tuple[str, ...],
    dry_run: bool, **overrides: int | None,
) -> None:  # fmt: skip
    """Train a flow: a shipped configuration by name, or a TOML file of your own."""
    from harness.decoders import build_decoder
    from harness.measure.planning import Plan
    from harness.training.config import command_line, read_config
    from harness.training.loop import train

    name, parsed = read_config(config, **_settings(settings, overrides))
    if dry_run:
        print(Plan(f"training '{name}'", f"{parsed.steps:,} steps of {parsed.batch_size} samples"))
        return
    command, decode = command_line(config, *settings, **overrides), build_decoder("sequential").decode
    folder = train(name, parsed, out or Path("runs") / name, decode, command, root, resume, skip_corrupt)
    print(f"{folder / name}.safetensors, with its model card {name}.md and samples where there are images")


def _settings(given: tuple[str, ...], options: dict[str, int | None]) -> dict[str, Any]:
    """The keys of a configuration that options and KEY=VALUE give, values of these as `parse_value` reads them."""
    from harness.options import parse_value

    found: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    for setting in given:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not (equals and key.isidentifier()):
            raise HarnessError(f"--set {setting!r} should read key=value, as decode_weight=0.1")
        if key in found:
            raise HarnessError(f"--set {setting!r} gives '{key}' a second time")
        found[key] = parse_value(value)
    return found


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
@click.option(
    "--seconds",
    type=Value("NonNegative"),
    help="That it may take, about; by default as the flow's size asks for. 0: linear corrections alone.",
)
@click.option("--batch-size", "together", type=Value("Batch"), help="Decoded together; by default as suits the device.")
@device
@weights
@threads
@dry_run
def calibrate_command(
    flow: str, samples: int | None, seed: int, seconds: float | None, together: int | None, device: str,
    weights: str | None, threads: int | None, dry_run: bool,
) -> None:  # fmt: skip
    """Fit guesses and corrections to FLOW, for initial="fitted", correction="fitted" or "learned", and 'fitted'.

    What iteration leaves of each layer is measured too, for 'sejd select=measured'.
    """
    import torch

    from harness.fitting.calibrate import store_calibration
    from harness.fitting.selection import store_selection
    from harness.flows import load_flow
    from harness.measure.cells import resolve_device
    from harness.measure.planning import plan_calibration
    from harness.progress import reporter

    torch.set_num_threads(threads or torch.get_num_threads())
    learned, device, seconds = seconds != 0, resolve_device(device), seconds or None
    if dry_run:
        print(plan_calibration(load_flow(flow, device, weights=weights), samples, seconds))
        return
    loaded = _fitted_to(flow, device, weights)
    with reporter() as progress:
        path = store_calibration(loaded, samples, seed, progress, learned=learned, seconds=seconds, together=together)
        store_selection(loaded, reporter=progress)
    print(path)


@app.command("tune")
@click.argument("flow", metavar="FLOW", shell_complete=names("flows", "published", files=True))
@click.option("--batch", "batches", type=Value("Batch"), required=True, multiple=True,
              help="Samples decoded together; may be repeated.")  # fmt: skip
@click.option("--budget", "budgets", type=Budget("NonNegative"), multiple=True, default=["sejd"], show_default=True,
              help="RMSE to the exact sample, or 'sejd' for SeJD's at tau 0.5; may be repeated.")  # fmt: skip
@click.option("--samples", type=Value("TuningSamples"), help="Tuned on, and held out; by default as many as it takes.")
@click.option("--seconds", type=Value("Positive"),
              help="That tuning and then measuring what was chosen may take, about; by default 60 on CUDA, on a CPU "
              "600 for tuning and 60 for measuring.")  # fmt: skip
@click.option("--out", type=FOLDER, help="Run folder of that; by default runs/tune-NAME, or the next that is free.")
@dataset
@click.option("--data-root", help="Where the real images lie; by default $HARNESS_DATA.")
@device
@weights
@threads
@dry_run
def tune_command(
    flow: str, batches: tuple[int, ...], budgets: tuple[float | None, ...], samples: int | None,
    seconds: float | None, device: str, weights: str | None, threads: int | None, out: Path | None, dry_run: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Measure how each layer of FLOW is decoded fastest within a budget, for the decoder 'auto'.

    What was chosen is then measured beside sequential and SeJD, and told in a sentence.
    """
    import torch

    from harness.cli.face import print_choice, recommend
    from harness.decoders import build_decoder
    from harness.fitting import prepare
    from harness.fitting.tune import Tuner, store_schedule
    from harness.measure.cells import resolve_device
    from harness.measure.planning import plan_choices
    from harness.measure.recommend import CLASSIC
    from harness.measure.sources import table_of
    from harness.metrics.neighbours import notice
    from harness.progress import reporter
    from harness.runs.store import require_new

    torch.set_num_threads(threads or torch.get_num_threads())
    device = resolve_device(device)
    if dry_run:
        print(plan_choices(flow, batches, budgets, seconds or TUNE_S, weights, CLASSIC, tuned=True))
        return
    loaded = _fitted_to(flow, device, weights)
    if seconds is None and device == "cuda":
        seconds = TUNE_S
    tuning_s, measuring_s = (None, TUNE_S) if seconds is None else (TUNING * seconds, (1 - TUNING) * seconds)
    if out is not None:
        require_new(out)
    if options["dataset"] is not None:
        table_of(flow, options["dataset"])
    with reporter() as progress:
        notice(progress.note, torch.get_num_threads())
        # candidates read the calibration
        prepare(build_decoder("fitted", correction="learned"), loaded, max(batches), progress.note, progress)
        tuner = Tuner(loaded, samples, reporter=progress, seconds=tuning_s)
        schedules = [store_schedule(loaded, tuner.schedule(*choice)) for choice in product(batches, budgets)]
    for path in schedules:
        assert path is not None  # it has a checkpoint
        print(f"{path.read_text(encoding='utf-8')}\nstored as {path}\n")
    found = recommend(
        flow, batches=batches, budgets=budgets, candidates=CLASSIC, seconds=measuring_s, device=device,
        threads=threads, out=out, name="tune", weights=weights, **options,
    )  # fmt: skip
    print_choice(found.run)


def _fitted_to(flow: str, device: str, weights: str | None) -> CausalFlow:
    """A flow, after it was seen that what is fitted to it can be stored."""
    from harness.decoders.stored import storage
    from harness.files import require_writable
    from harness.flows import load_flow

    loaded = load_flow(flow, device, weights=weights)
    assert loaded.source is not None
    require_writable(storage(loaded.source, "").parent)
    return loaded
