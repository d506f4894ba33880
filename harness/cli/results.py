"""Commands that look at what there is: compare, report, list, baselines, and the contract of a decoder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.cli.app import FOLDER, Group, Value, app, dry_run, threads, weights
from harness.cli.completion import names, names_of_kind


@app.command()
@click.argument("decoder", shell_complete=names("decoders"))
@click.option("--flow", "flows", multiple=True, shell_complete=names("flows", files=True),
              help="Flow to check on: a contract flow, a shipped one, or a path.")  # fmt: skip
@click.option("--clause", "clauses", multiple=True, help="Only this clause (repeatable).")
@click.option("--seed", type=Value("Seed"), default=0, show_default=True, help="Of latents and random flows.")
@weights
@threads
@dry_run
def check(
    decoder: str, flows: tuple[str, ...], clauses: tuple[str, ...], seed: int, weights: str | None,
    threads: int | None, dry_run: bool,
) -> int:  # fmt: skip
    """Check a decoder, NAME or package.module:Class, against the contract every decoder keeps."""
    import torch

    from harness.contract import check, planned, print_findings
    from harness.measure.planning import Plan

    torch.set_num_threads(threads or torch.get_num_threads())
    if dry_run:
        on, wanted = planned(decoder, flows, clauses)
        print(Plan(f"contract of {decoder}", f"{len(wanted)} clauses on each of {', '.join(on)}"))
        return 0
    return print_findings(decoder, check(decoder, flows, seed, clauses, weights=weights))


@app.command()
@click.argument("base", shell_complete=names("baselines", files=True))
@click.argument("new", shell_complete=names("baselines", files=True))
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json", "junit"]), default="text",
              show_default=True)  # fmt: skip
@click.option("--only", type=click.Choice(["regressed"]), help="Leave the other cells out.")
@click.option("--tolerance", type=Value("NonNegative"), default=0.05, show_default=True, help="Growth that is none.")
@click.option("--require-evidence", is_flag=True, help="Exit 1 also where a cell is missing on one side, was not "
              "measured, or not comparably, or so seldom that no change could be seen.")  # fmt: skip
def compare(base: str, new: str, form: str, only: str | None, tolerance: float, require_evidence: bool) -> int:
    """Compare the run NEW with BASE, each a run folder or a stored baseline; exit 1 on a regression."""
    from analysis.compare.render import print_comparison
    from harness.runs.baselines import open_run

    return print_comparison(open_run(base), open_run(new), form, only == "regressed", tolerance, require_evidence)


@app.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Every figure of every cell, and what it comes to, as JSON.")
def show(run: str, as_json: bool) -> None:
    """Show the run RUN, a folder or a stored baseline: its tables, and which decoder to use."""
    from harness.cli.face import print_run
    from harness.runs.baselines import open_run

    print_run(open_run(run), as_json)


@app.command("bench-compare")
@click.argument("base")
@click.argument("new", default="HEAD")
@click.option("--tolerance", type=Value("NonNegative"), default=0.1, show_default=True, help="Growth that is none.")
def bench_compare(base: str, new: str, tolerance: float) -> int:
    """Compare asv's stored results of NEW with those of BASE, each a commit or a file; exit 1 on a regression."""
    from analysis.compare.asv import find_results, print_comparison

    return print_comparison(find_results(base), find_results(new), tolerance)


@app.command("list")
@click.argument("kind", required=False, metavar="[decoders|flows|datasets|probes|matrices|baselines|studies]",
                shell_complete=names("kinds"))  # fmt: skip
@click.argument("name", required=False, shell_complete=names_of_kind)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_command(kind: str | None, name: str | None, as_json: bool) -> None:
    """List what there is and where it comes from; with a NAME, one of a kind, and the options it takes."""
    from harness.cli.catalog import print_catalog

    print_catalog(kind, name, as_json)


@app.command()
def schema() -> None:
    """Print the JSON schema of a matrix file, for editors that complete and check TOML."""
    from harness.measure.matrix import Matrix

    print(json.dumps(Matrix.model_json_schema(), indent=2))


@app.group(cls=Group)
def baseline() -> None:
    """Stored runs that new ones are compared with."""


@baseline.command("save")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--replace", is_flag=True, help="Overwrite a baseline of that name.")
def save(run: Path, name: str, replace: bool) -> None:
    """Store RUN as results/baselines/NAME: its tables and environment, without images."""
    from harness.runs.baselines import save_baseline

    print(save_baseline(run, name, replace=replace))


@baseline.command("bench")
@click.argument("commit", default="HEAD")
def bench_baseline(commit: str) -> None:
    """Store the costs that asv tracked for COMMIT as results/baselines/asv.json."""
    from analysis.compare.asv import find_results, save_costs

    print(save_costs(find_results(commit)))


@app.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, help="Folder; by default the first RUN.")
@click.option("--format", "formats", type=click.Choice(["png", "svg", "pdf"]), multiple=True,
              help="Of the figures besides PNG; may be given several times.")  # fmt: skip
@click.option("--width", type=click.Choice(["column", "page"]), help="Figures as wide as a journal's column or page.")
@click.option("--only", multiple=True, metavar="FIGURE",
              help="This figure or table alone, and no report.html; may be given several times.")  # fmt: skip
def report(runs: tuple[Path, ...], out: Path | None, formats: tuple[str, ...], width: str | None,
           only: tuple[str, ...]) -> None:  # fmt: skip
    """Render figures, tables and report.html from run folders, or from folders that hold some."""
    from analysis.report import build

    made = build(runs, out, formats, width, only)
    print(f"the {'figures are in' if only else 'report is'} {made}")
