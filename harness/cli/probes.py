"""`harness probe`: one subcommand per probe, its options those that the probe declares; no torch until it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.registry import first_line


class ProbeGroup(click.Group):
    """Probes as subcommands, found by the registry; ``package.module:Class`` is one too."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from harness.measure.probes.probe import probes

        return probes.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        from harness.measure.probes.probe import probes
        from harness.options import options_of

        cls = probes.get(cmd_name)
        declared = [
            click.Option(
                [f"--{option.name.replace('_', '-')}"],
                help=f"{option.help}  [default: {_shown(option.default)}]",
                metavar="A,B,..." if option.many else "VALUE",
            )
            for option in options_of(cls)
        ]
        return click.Command(
            cmd_name,
            callback=_run(cmd_name),
            params=[*declared, *_shared()],
            help=first_line(cls),
        )


def _shared() -> list[click.Parameter]:
    path = click.Path(path_type=Path, file_okay=False)
    return [
        click.Argument(["checkpoint"]),
        click.Option(["--out"], type=path, help="Run folder, new or not; by default runs/probe-CHECKPOINT."),
        click.Option(["--resume"], is_flag=True, help="Add to what the run folder holds; nothing is measured twice."),
        click.Option(["--dataset"], help="That the flow was trained on; by default what the checkpoint says."),
        click.Option(["--data-root"], help="Where the real images lie; by default $HARNESS_DATA."),
        click.Option(["--device"], type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        click.Option(["--threads"], type=click.IntRange(min=1), help="CPU threads; by default torch's own choice."),
    ]


def _run(name: str) -> Any:
    def run(
        checkpoint: str,
        out: Path | None,
        resume: bool,
        dataset: str | None,
        data_root: str | None,
        device: str,
        threads: int | None,
        **options: str | None,
    ) -> None:
        from harness.flows.checkpoints import checkpoint_path
        from harness.measure.probes.probe import build_probe
        from harness.measure.run_probe import run_probe
        from harness.progress import reporter

        probe = build_probe(name, **{option: value for option, value in options.items() if value is not None})
        out = out or Path("runs") / f"probe-{checkpoint_path(checkpoint).stem}"
        progress = reporter()
        done = run_probe(
            probe, checkpoint, out, progress, resume=resume, dataset=dataset, device=device, threads=threads,
            data_root=data_root,
        )  # fmt: skip
        click.echo(f"{done.path}; `harness report {done.path}` draws it")

    return run


def _shown(default: object) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
