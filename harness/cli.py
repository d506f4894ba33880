"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from harness import __version__
from harness.errors import HarnessError
from harness.probes.command import ProbeGroup

data_root = click.option(
    "--data-root",
    "root",
    type=click.Path(path_type=Path),
    help="Where the real images lie; by default $HARNESS_DATA.",
)


class Budget(click.ParamType):
    """A deviation allowed, or ``"sejd"``, which is None."""

    name = "rmse"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """The number, checked."""
        return None if value in (None, "sejd") else click.FloatRange(min=0).convert(value, param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="harness")
def app() -> None:
    """Measure how autoregressive normalizing flows are sampled: how fast, at what quality, at what memory, and why."""


@app.command()
@click.argument("decoder")
@click.option("--flow", "flows", multiple=True, help="Flow to check on: a contract flow, a shipped one, or a path.")
@click.option("--clause", "clauses", multiple=True, help="Only this clause (repeatable).")
@click.option("--seed", default=0, show_default=True, help="Of latents and random flows.")
def check(decoder: str, flows: tuple[str, ...], clauses: tuple[str, ...], seed: int) -> int:
    """Check a decoder, NAME or package.module:Class, against the contract every decoder keeps."""
    from harness.contract import check, print_findings

    return print_findings(decoder, check(decoder, flows, seed, clauses))


@app.command()
@click.argument("base")
@click.argument("new")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.option("--only", type=click.Choice(["regressed"]), help="Leave the other cells out.")
@click.option("--tolerance", type=float, default=0.05, show_default=True, help="Share that is no regression.")
def compare(base: str, new: str, form: str, only: str | None, tolerance: float) -> int:
    """Compare the run NEW with BASE, each a run folder or a stored baseline; exit 1 on a regression."""
    from harness.baselines import open_run
    from harness.compare.render import print_comparison

    return print_comparison(open_run(base), open_run(new), form, only == "regressed", tolerance)


@app.command("bench-compare")
@click.argument("base")
@click.argument("new", default="HEAD")
@click.option("--tolerance", type=float, default=0.1, show_default=True, help="Share that is no regression.")
def bench_compare(base: str, new: str, tolerance: float) -> int:
    """Compare asv's stored results of NEW with those of BASE, each a commit or a file; exit 1 on a regression."""
    from harness.compare.asv import find_results, print_comparison

    return print_comparison(find_results(base), find_results(new), tolerance)


@app.command("list")
@click.argument("kind", required=False, metavar="[decoders|flows|datasets|probes|matrices|baselines]")
def list_command(kind: str | None) -> None:
    """List decoders, flows, datasets, probes, matrices and baselines, and where they come from."""
    from harness.catalog import print_catalog

    print_catalog(kind)


@app.group(cls=ProbeGroup)
def probe() -> None:
    """Experiments on the layers of a flow, each with options of its own: harness probe NAME --help."""


@app.group()
def baseline() -> None:
    """Stored runs that new ones are compared with."""


@baseline.command("save")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--replace", is_flag=True, help="Overwrite a baseline of that name.")
def save(run: Path, name: str, replace: bool) -> None:
    """Store RUN as results/baselines/NAME: its tables and environment, without images."""
    from harness.baselines import save_baseline

    click.echo(save_baseline(run, name, replace=replace))


@baseline.command("bench")
@click.argument("commit", default="HEAD")
def bench_baseline(commit: str) -> None:
    """Store the costs that asv tracked for COMMIT as results/baselines/asv.json."""
    from harness.compare.asv import find_results, save_costs

    click.echo(save_costs(find_results(commit)))


def main() -> NoReturn:
    """Entry point: exit 0 when done, 1 when a comparison or check failed, 2 on bad input with one line on stderr.

    A command returns its exit code, or None for 0.
    """
    sys.path.append(os.getcwd())  # so that package.module:Class is found where the user stands, as with python -m
    try:
        code = app(standalone_mode=False) or 0
    except HarnessError as error:
        code = _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        code = 2
    except click.ClickException as error:
        code = _fail(error.format_message())
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # of a path that the user named: too long, on a full disk, of somebody else
        code = _fail(f"{error.strerror or error}{f': {error.filename!r}' if error.filename else ''}")
    except (KeyboardInterrupt, click.Abort):
        print("interrupted; what was measured is stored, and --resume continues", file=sys.stderr)
        code = 130
    sys.exit(code)


def _fail(sentence: str) -> int:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


@app.command()
@click.argument("config", metavar="CONFIG|DATASET")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder; by default runs/NAME.")
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
    from harness.flows.training.config import command_line, read_config
    from harness.flows.training.families import train

    name, parsed = read_config(config, **overrides)
    command, decode = command_line(config, **overrides), build_decoder("sequential").decode
    options = {"decode": decode, "command": command, "root": root, "resume": resume, "skip_corrupt": skip_corrupt}
    folder = train(name, parsed, out or Path("runs") / name, **options)
    click.echo(f"{folder / name}.safetensors, with its model card {name}.md and samples where there are images")


@app.command()
@click.argument("dataset")
@data_root
def download(dataset: str, root: Path | None) -> None:
    """Fetch a dataset's files from its publisher and check them, where that is allowed: cifar10, cifar100."""
    from harness.datasets import datasets

    click.echo(datasets.get(dataset)(root=root).download())


@app.command("train-features")
@click.argument("dataset")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; by default the user's own.")
@data_root
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--epochs", type=int, help="In place of the recipe's.")
@click.option("--size", type=int, help="Side of the images, in place of the recipe's or their own.")
@click.option("--skip-corrupt", is_flag=True, help="Leave unreadable images out and say how many.")
def train_features_command(
    dataset: str,
    out: Path | None,
    root: Path | None,
    seed: int,
    epochs: int | None,
    size: int | None,
    skip_corrupt: bool,
) -> None:
    """Train the small network whose features FID and KID compare where Inception's weights are not at hand."""
    from harness.metrics.features import own_networks
    from harness.metrics.train_features import train_features

    path = train_features(dataset, out or own_networks(), root, seed, epochs, size, skip_corrupt, report=click.echo)
    click.echo(f"{path}, with its card {path.stem}.md and its sanity table {path.stem}.csv")


@app.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; by default the first RUN.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["png", "svg", "pdf"]),
    multiple=True,
    help="Of the figures besides PNG; may be given several times.",
)
def report(runs: tuple[Path, ...], out: Path | None, formats: tuple[str, ...]) -> None:
    """Render figures, tables and report.html from run folders, or from folders that hold some."""
    from analysis.report import build

    click.echo(f"the report is {build(runs, out, formats)}")


@app.command("run")
@click.argument("matrix")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; by default runs/NAME.")
@click.option("--resume", is_flag=True, help="Finish what a killed run left; a finished one is only summarised.")
@click.option("--profile", help="A variant of the matrix, such as fast or full.")
@click.option("--decoder", "decoders", multiple=True, metavar="SPEC", help="One more: 'NAME option=value ...', where "
              "NAME may be package.module:Class (repeatable).")  # fmt: skip
@click.option("--against", metavar="BASELINE", help="Then compare with a stored baseline or another run.")
@click.option("--data-root", help="Where the real images lie; by default $HARNESS_DATA.")
@click.option("--inception-weights", type=click.Path(), help="Compare by Inception's features, from this file.")
@click.option("--skip-corrupt", is_flag=True, help="Leave unreadable real images out; the quality rows count them.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="In place of the matrix's.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default torch's own choice.")
@click.option("--on", default="local", show_default=True, metavar="local|ray|ray://HOST:PORT|ray:ADDRESS",
              help="Where it runs: here, or on a Ray cluster.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes of this machine at a time on the CPU; what is timed is always alone.")  # fmt: skip
@click.option("--retries", type=click.IntRange(min=0), default=2, show_default=True,
              help="Times that what a lost process or machine had begun is run again.")  # fmt: skip
def run_command(
    matrix: str,
    out: Path | None,
    resume: bool,
    profile: str | None,
    decoders: tuple[str, ...],
    against: str | None,
    device: str | None,
    on: str,
    workers: int,
    **options: str | int | None,
) -> int:
    """Measure a matrix, by name or .toml file, or a checkpoint: speed, cost, quality and memory of every cell."""
    from rich.console import Console

    from harness.baselines import open_run
    from harness.compare.render import print_comparison
    from harness.executors.choose import executor
    from harness.matrix import parse_decoder
    from harness.progress import reporter
    from harness.runner import run_matrix
    from harness.sources import matrix_of
    from harness.summary import print_summary

    stored = open_run(against) if against else None  # a wrong name is told before anything is measured
    overrides = {"decoders": [parse_decoder(spec) for spec in decoders]} | ({"device": device} if device else {})
    parsed = matrix_of(matrix, profile, overrides)
    where = executor(on, workers)
    run = run_matrix(parsed, out or Path("runs") / parsed.name, reporter(), resume=resume, executor=where, **options)  # type: ignore[arg-type]
    console = Console()
    print_summary(run, console if console.is_terminal else Console(width=170))
    click.echo(f"\n{run.path}; `harness report {run.path}` draws it")
    return 0 if stored is None else print_comparison(stored, run)


@app.command("sample")
@click.argument("flow", metavar="FLOW")
@click.option("--decoder", "spec", default="sejd", show_default=True, metavar="SPEC", help="'NAME option=value ...'.")
@click.option("--tau", type=float, help="Stopping threshold; by default the decoder's.")
@click.option("-n", "--number", "count", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the latents.")
@click.option("--labels", help="Classes that take turns, such as 0,1,2; -1 is none. By default all of them.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--guidance", type=float, help="Scale of classifier-free guidance.")
@click.option("--guidance-components", type=click.Choice(["a", "b", "ab"]), default="ab", show_default=True)
@click.option("--annealed", is_flag=True, help="Guidance grows along the sequence.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of guidance's unconditional pass.")
@click.option("--denoise", metavar="[SIGMA]", is_flag=False, flag_value="auto", help="One denoising step afterwards; "
              "SIGMA is the noise in training, by default the checkpoint's own.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default torch's own choice.")
@click.option("--on", default="local", show_default=True, metavar="local|ray|ray://HOST:PORT|ray:ADDRESS",
              help="Where folders and Parquet files are drawn.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="CPU processes at a time.")
def sample_command(out: Path, threads: int | None, on: str, workers: int, **options: Any) -> None:
    """Draw samples from FLOW, a shipped flow's name or a checkpoint file.

    --out says how they are written: a .png is one grid, a .parquet a table of images, anything else a folder of them.
    The latter two are drawn in shards; the same command goes on where a killed one stopped.
    """
    from harness.sampling import read_request, sample_to_grid

    request = read_request(**options)
    if out.suffix == ".png":
        click.echo(sample_to_grid(request, out, threads))
        return
    from harness.drawing import draw_to_files
    from harness.executors.choose import executor
    from harness.progress import reporter

    click.echo(draw_to_files(request, out, executor(on, workers), reporter(), threads=threads))


@app.command("calibrate")
@click.argument("flow", metavar="FLOW")
@click.option("--samples", type=click.IntRange(min=16), help="Decoded exactly; by default as many as the fit asks for.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def calibrate_command(flow: str, samples: int | None, seed: int) -> None:
    """Fit guesses and corrections to FLOW, for initial="fitted", correction="fitted" and the decoder 'fitted'."""
    from harness.calibration import calibrate_checkpoint
    from harness.flows import load_flow
    from harness.flows.checkpoints import checkpoint_path

    click.echo(calibrate_checkpoint(load_flow(flow), checkpoint_path(flow), samples=samples, seed=seed))


@app.command("tune")
@click.argument("flow", metavar="FLOW")
@click.option("--batch", "batches", type=click.IntRange(min=1), required=True, multiple=True,
              help="Samples decoded together; may be repeated.")  # fmt: skip
@click.option("--budget", "budgets", type=Budget(), multiple=True, default=["sejd"], show_default=True,
              help="RMSE to the exact sample, or 'sejd' for SeJD's at tau 0.5; may be repeated.")  # fmt: skip
@click.option("--samples", type=click.IntRange(min=8), help="Tuned on, and held out; by default as many as it takes.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default torch's own choice.")
def tune_command(flow: str, device: str, threads: int | None, **options: Any) -> None:
    """Measure how each layer of FLOW is decoded fastest within a budget, for the decoder 'auto'."""
    import torch

    from harness.flows import load_flow
    from harness.flows.checkpoints import checkpoint_path
    from harness.tuning import tune_checkpoint

    torch.set_num_threads(threads or torch.get_num_threads())
    for path in tune_checkpoint(load_flow(flow, device), checkpoint_path(flow), **options):
        click.echo(f"{path.read_text()}\nstored as {path}\n")


@app.command("study")
@click.argument("name", metavar="NAME|all")
@click.option("--profile", type=click.Choice(["fast", "full"]), default="fast", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/studies"),
              show_default=True, help="Where the runs go.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), default=Path("results/studies"),
              show_default=True, help="Where texts, tables and figures go.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Measure only what is missing in --out.")
@click.option("--check", is_flag=True, help="Exit 1, and leave what is stored, where a deterministic table differs.")
@data_root
def study_command(name: str, root: Path | None, **options: Any) -> int:
    """Measure a study of the paper's claims and write its text: NAME, or all of them."""
    from harness.studies.command import run_studies

    return run_studies(name, data_root=root, **options)


if __name__ == "__main__":
    main()
