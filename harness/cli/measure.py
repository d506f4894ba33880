"""Commands that measure: run, sample, probe, study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.app import (
    FOLDER,
    Budget,
    Command,
    Group,
    Value,
    app,
    data_root,
    dataset,
    device,
    dry_run,
    threads,
    weights,
)
from harness.cli.completion import names
from harness.errors import HarnessError, NonFiniteError
from harness.registry import first_line


@app.command("run")
@click.argument("matrix", shell_complete=names("matrices", "published", files=True))
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; by default runs/NAME.")
@click.option("--resume", is_flag=True, help="Finish what a killed run left; a finished one is only summarised.")
@click.option("--profile", help="A variant of the matrix, such as fast or full.")
@click.option("--decoder", "decoders", multiple=True, metavar="SPEC",
              shell_complete=names("decoders"), help="One more: 'NAME option=value ...', where "
              "NAME may be package.module:Class (repeatable).")  # fmt: skip
@click.option("--against", metavar="BASELINE", shell_complete=names("baselines", files=True),
              help="Then compare with a stored baseline or another run.")  # fmt: skip
@dataset
@click.option("--data-root", help="Where the real images lie; by default $HARNESS_DATA.")
@click.option("--inception-weights", type=click.Path(), help="Compare by Inception's features, from this file.")
@click.option("--skip-corrupt", is_flag=True, help="Leave unreadable real images out; the quality rows count them.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="In place of the matrix's.")
@weights
@threads
@click.option("--on", default="local", show_default=True, metavar="local|ray|ray://HOST:PORT|ray:ADDRESS",
              help="Where it runs: here, or on a Ray cluster.")  # fmt: skip
@click.option("--workers", type=Value("Processes"), default=1, show_default=True,
              help="Processes of this machine at a time on the CPU; what is timed is always alone.")  # fmt: skip
@click.option("--retries", type=Value("Retries"), default=2, show_default=True,
              help="Times that what a lost process or machine had begun is run again.")  # fmt: skip
@dry_run
def run_command(
    matrix: str, out: Path | None, profile: str | None, decoders: tuple[str, ...], against: str | None,
    device: str | None, weights: str | None, on: str, workers: int, dataset: str | None, dry_run: bool, **options: Any,
) -> int:  # fmt: skip
    """Measure a matrix, by name or .toml file, or a checkpoint: speed, cost, quality and memory of every cell."""
    from analysis.compare.render import print_comparison
    from harness.cli.face import measured, parsed_matrix, print_run
    from harness.measure.planning import plan_matrix
    from harness.measure.workers.local import executor
    from harness.runs.baselines import open_run

    if dry_run:
        parsed = parsed_matrix(matrix, profile, decoders, dataset, weights, device)
        print(plan_matrix(parsed, out or Path("runs") / parsed.name, options["resume"], options["data_root"]))
        return 0
    stored = open_run(against) if against else None  # a wrong name is told before anything is measured
    where = executor(on, workers)
    run = measured(matrix, out, profile, decoders, dataset, weights, device, executor=where, **options)
    print(f"{run.path}; `harness report {run.path}` draws it")
    print_run(run)
    return 0 if stored is None else print_comparison(stored, run)


@app.command("recommend")
@click.argument("checkpoint", metavar="CHECKPOINT", shell_complete=names("flows", "published", files=True))
@click.option("--batch-size", "batches", type=Value("Batch"), multiple=True, default=[16], show_default=True,
              help="Samples decoded together; may be repeated.")  # fmt: skip
@click.option("--budget", "budgets", type=Budget("NonNegative"), multiple=True, default=["sejd"], show_default=True,
              help="RMSE to the exact sample, or 'sejd' for SeJD's at tau 0.5; may be repeated.")  # fmt: skip
@click.option("--seconds", type=Value("Positive"), default=300, show_default=True,
              help="That measuring may take, about; fitting, done once for a checkpoint, comes before.")  # fmt: skip
@click.option("--out", type=FOLDER, help="Run folder; by default runs/recommend-NAME, or the next that is free.")
@click.option("--resume", is_flag=True, help="Finish what a killed one left in its run folder.")
@dataset
@click.option("--data-root", help="Where the real images lie; by default $HARNESS_DATA.")
@click.option("--inception-weights", type=click.Path(), help="Compare by Inception's features, from this file.")
@device
@weights
@threads
@dry_run
def recommend_command(checkpoint: str, out: Path | None, resume: bool, dry_run: bool, **options: Any) -> None:
    """Which decoder to use for CHECKPOINT, a flow's name or file: fitted, tuned and measured, told in a sentence.

    Killed at any moment, what was fitted is kept, and with --resume what was measured.
    """
    from harness.cli.face import print_choice, recommend
    from harness.measure.cells import resolve_device
    from harness.measure.planning import plan_choices

    if dry_run:
        resolve_device(options["device"])
        print(plan_choices(checkpoint, *(options[name] for name in ("batches", "budgets", "seconds", "weights"))))
        return
    print_choice(recommend(checkpoint, out=out, resume=resume, **options).run)


@app.command("sample")
@click.argument("flow", metavar="FLOW", shell_complete=names("flows", "published", files=True))
@click.option("--decoder", "spec", metavar="SPEC", shell_complete=names("decoders"),
              help="'NAME option=value ...'; by default auto where it was tuned for FLOW, else sejd.")  # fmt: skip
@click.option("--tau", type=Value("NonNegative"), help="Stopping threshold; by default the decoder's.")
@click.option("-n", "--number", "count", type=Value("Count"), default=64, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True)
@click.option("--seed", type=Value("Seed"), default=0, show_default=True, help="Of the latents.")
@click.option("--labels", help="Classes that take turns, such as 0,1,2; -1 is none. By default all of them.")
@click.option("--batch-size", type=Value("Batch"), default=64, show_default=True)
@click.option("--guidance", type=Value("Real"), help="Scale of classifier-free guidance.")
@click.option("--guidance-components", type=click.Choice(["a", "b", "ab"]), default="ab", show_default=True)
@click.option("--annealed", is_flag=True, help="Guidance grows along the sequence.")
@click.option(
    "--temperature", type=Value("Positive"), default=1.0, show_default=True, help="Of guidance's unconditional pass."
)
@click.option("--denoise", metavar="[SIGMA]", is_flag=False, flag_value="auto",
              help="One denoising step afterwards; SIGMA is the noise in training, by default the checkpoint's."
              )  # fmt: skip
@click.option("--certify", metavar="[TOLERANCE]", is_flag=False, flag_value="state",
              help="Estimate each sample's deviation by one forward pass; decode on what may be above TOLERANCE."
              )  # fmt: skip
@dataset
@data_root
@device
@weights
@threads
@click.option("--on", default="local", show_default=True, metavar="local|ray|ray://HOST:PORT|ray:ADDRESS",
              help="Where folders and Parquet files are drawn.")  # fmt: skip
@click.option("--workers", type=Value("Processes"), default=1, show_default=True, help="CPU processes at a time.")
def sample_command(
    out: Path, threads: int | None, on: str, workers: int, dataset: str | None, root: Path | None, **options: Any
) -> int:
    """Draw samples from FLOW, a shipped flow's name or a checkpoint file.

    --out says how they are written: a .png, .jpg, .webp, ... is one grid, a .parquet a table of images, a name without
    such a suffix a folder of them. The latter two are drawn in shards; the same command goes on where a killed one
    stopped. Samples that are not finite are counted and not written, and the exit code is 1.
    """
    from harness.measure.sampling import output_kind, read_request, sample_to_grid
    from harness.progress import reporter

    kind = output_kind(out)
    if dataset is not None and kind != "grid":
        raise HarnessError(
            f"--dataset compares the images of one grid, as a .png; for many samples: harness run {options['flow']} "
            f"--dataset {dataset}"
        )
    request = read_request(**options)
    with reporter() as progress:
        request.prepare(progress)
    try:
        if kind == "grid":
            print(sample_to_grid(request, out, threads, dataset, None if root is None else str(root)))
            return 0
        from harness.measure.tasks.samples import draw_to_files
        from harness.measure.workers.local import executor

        print(draw_to_files(request, out, executor(on, workers), reporter(), threads=threads))
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class ProbeGroup(Group):
    """Probes as subcommands, their options those that each declares; no torch until one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from harness.measure.probes.probe import probes

        return probes.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        from harness.measure.probes.probe import probes
        from harness.options import options_of

        cls = probes.get(cmd_name)
        declared = options_of(cls)

        @click.command(cmd_name, cls=Command, help=first_line(cls))
        @click.argument("checkpoint", shell_complete=names("flows", "published", files=True))
        @click.option("--out", type=FOLDER, help="Run folder, new or not; by default runs/probe-CHECKPOINT.")
        @click.option("--resume", is_flag=True, help="Add to what the run folder holds; nothing is measured twice.")
        @click.option(
            "--dataset",
            shell_complete=names("datasets"),
            help="That the flow was trained on; by default what the checkpoint says.",
        )
        @click.option("--data-root", help="Where the real images lie; by default $HARNESS_DATA.")
        @device
        @weights
        @threads
        @dry_run
        def run(checkpoint: str, out: Path | None, dry_run: bool, **options: Any) -> None:
            from harness.cli.face import print_run
            from harness.flows.checkpoints import checkpoint_path
            from harness.measure.planning import plan_probe
            from harness.measure.probes.probe import build_probe
            from harness.measure.run_probe import run_probe
            from harness.progress import reporter

            own = {option.name: options.pop(option.name) for option in declared}
            probe = build_probe(cmd_name, **{name: value for name, value in own.items() if value is not None})
            if dry_run:
                print(plan_probe(cmd_name, probe, checkpoint, options["weights"]))
                return
            out = out or Path("runs") / f"probe-{checkpoint_path(checkpoint).stem}"
            done = run_probe(probe, checkpoint, out, reporter(), **options)
            print(f"{done.path}; `harness report {done.path}` draws it")
            print_run(done)

        run.params[:0] = [
            click.Option(
                [f"--{option.name.replace('_', '-')}"],
                help=f"{option.help}  [default: {_shown(option.default)}]",
                metavar="A,B,..." if option.many else "VALUE",
            )
            for option in declared
        ]
        return run


def _shown(default: object) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


@app.group(cls=ProbeGroup)
def probe() -> None:
    """Experiments on the layers of a flow, each with options of its own: harness probe NAME --help."""


@app.command("study")
@click.argument("name", metavar="NAME|FOLDER|all", shell_complete=names("studies", besides=("all",), files=True))
@click.option("--profile", type=click.Choice(["fast", "full"]), default="fast", show_default=True)
@click.option("--out", type=FOLDER, default="runs/studies", show_default=True, help="Where the runs go.")
@click.option("--results", type=FOLDER, default="results/studies", show_default=True,
              help="Where texts, tables and figures go.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Measure only what is missing in --out.")
@click.option("--check", is_flag=True, help="Exit 1, and leave what is stored, where a deterministic table differs.")
@data_root
@threads
@dry_run
def study_command(name: str, root: Path | None, **options: Any) -> int:
    """Measure a study of the paper's claims and write its text: a shipped one, one in a FOLDER, or all shipped."""
    from harness.cli.studies import run_studies

    return run_studies(name, data_root=root, **options)
