"""The parts of README.md that stored tables write, each between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""

from __future__ import annotations

import io
import sys
import textwrap
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis import fastest
from analysis.figures import pareto
from analysis.figures.files import save, settle, write_csv
from analysis.load import BASELINE, PAPER_TAU, Runs, highest, load, title_of
from analysis.quality import INVALID
from analysis.studies.render import machine
from analysis.studies.stored import origin, provenance
from analysis.summary import print_summary, recommendations
from analysis.text import markdown, markdown_text, quantity, speedup
from harness.errors import HarnessError
from harness.runs.store import read_run

BATCH = 16
"""Of the figure and of the demo's table."""
FLOW = "cifar10"
"""Of the first figure."""
FIGURE = f"frontier-{FLOW}"
MEASURE, INTERVAL = "deviation_rmse", ["speedup", "low", "high", "coverage"]
WIDE = 200
"""Columns of the demo's table, so that none of its own is left out."""
COLUMNS = {
    "where": "flow, batch",
    "speedup": "auto over sequential",
    "over": "over SeJD, interval",
    "deviations": "deviation, SeJD's",
    "forward_ratio": "in forward passes",
    "valid": "quality",
    "strict": "within 0.01: over sequential, quality",
}


def write(readme: Path, results: Path) -> Path:
    """Write the parts, and the first figure with its table into ``results/figures``. Raises HarnessError: no marks."""
    runs = decoders_of(results)
    frame = frontier(runs)
    drawn = pareto.PLOTS[0].figure(frame)
    settle(drawn)
    (results / "figures").mkdir(parents=True, exist_ok=True)
    save(drawn, results / "figures" / f"{FIGURE}.png", FIGURE)
    write_csv(frame, results / "figures" / f"{FIGURE}.csv")
    readme.write_text(rendered(readme.read_text(encoding="utf-8"), results, runs), encoding="utf-8")
    return readme


def rendered(text: str, results: Path, runs: Runs) -> str:
    """The text with its parts as the tables stored in `results`, and `decoders_of` these, have them."""
    for name, part in {"frontier": _frontier(runs), "demo": _demo(results), "fastest": _fastest(runs)}.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed) or begin in rest or end in before + after:
            raise HarnessError(f"the document has to hold '{begin}' and '{end}' once, where this part is written")
        text = f"{before}{begin}\n\n{part}\n\n{end}{after}"
    return text


def decoders_of(results: Path) -> Runs:
    """The stored runs of the matrix `fastest`, of every decoder."""
    return load(sorted((results / "runs").glob("fastest*")))


def frontier(runs: Runs) -> pd.DataFrame:
    """What the first figure draws: every decoder of `decoders_of` on one flow, at one batch size."""
    frame = pareto.data(runs, MEASURE)
    return frame[frame["flow"].eq(FLOW) & frame["batch_size"].eq(BATCH)].reset_index(drop=True)


def _frontier(runs: Runs) -> str:
    frame = frontier(runs)
    auto = highest(frame[frame["series"].eq(fastest.AUTO)], "speedup")
    others = frame["valid"].ne(INVALID) & frame["decoder"].ne(BASELINE) & ~frame["ours"]
    rival = highest(frame[others], "speedup")
    told = [
        f"{speedup(*(row[name] for name in INTERVAL))} as fast as {BASELINE} at a deviation of {quantity(row[MEASURE])}"
        for row in (auto, rival)
    ]
    sentence = (
        f"Speed-up over exact sequential decoding against deviation from its samples, every decoder on the flow "
        f"`{FLOW}` at batch {BATCH}, on {machine(runs)}; large marks are ours, the line is the Pareto front, hollow is "
        f"what loses quality, half filled what may. `auto`, the schedule that was found fastest for this flow, is "
        f"{told[0]}; the fastest of the papers' decoders that are not known to lose quality, "
        f"{markdown_text(title_of(rival))}, is {told[1]}."
    )
    return f"![{FIGURE}](results/figures/{FIGURE}.png)\n\n{_filled(f'*{sentence}*')}"


def _demo(results: Path) -> str:
    run = read_run(results / "runs" / "digits")
    out = io.StringIO()
    print_summary(run, Console(file=out, width=WIDE))
    wanted = [one for one in recommendations(run) if f", batch {BATCH}, " in one.where]
    blocks = out.getvalue().split("\n\n")
    table = next(block.strip("\n") for block in blocks if f", batch {BATCH}, " in block.lstrip("\n").partition("\n")[0])
    table = "\n".join(line.rstrip() for line in [*table.splitlines(), "", _filled(str(wanted[0]))])
    return f"On {machine(load(run.path))}:\n\n```\n{table}\n```\n\n{origin(provenance([run]))}"


def _fastest(runs: Runs) -> str:
    frame = fastest.table(runs)
    paper = frame["series"].eq("sejd") & frame["tau"].eq(PAPER_TAU)
    strict = frame[frame["series"].eq(fastest.STRICT)]
    both = frame[frame["series"].eq(fastest.AUTO)].merge(frame[paper], on=fastest.CELL, suffixes=("", "_sejd"))
    both = both.merge(strict, on=fastest.CELL, how="left", suffixes=("", "_strict"))
    half = frame[frame["series"].eq("sejd, networks in bfloat16") & frame["batch_size"].ge(BATCH)]["over_sejd"]
    rows = [
        {
            "where": f"{row['flow']}, {row['batch_size']}",
            "speedup": f"{row['speedup']:.1f}x",
            "over": speedup(*(row[name] for name in fastest.OVER_SEJD)),
            "deviations": f"{quantity(row[MEASURE])}, {quantity(row[f'{MEASURE}_sejd'])}",
            "forward_ratio": quantity(row["forward_ratio"]),
            "valid": _quality(row["valid"], row["fid"]),
            "strict": f"{row['speedup_strict']:.1f}x, {_quality(row['valid_strict'], row['fid_strict'])}",
        }
        for row in both.to_dict("records")
    ]
    doubts = both.merge(runs.validity[["cell_id", "why"]], on="cell_id").dropna(subset=["why"])
    why = [f"{row['flow']}, {row['batch_size']}: {row['valid']}, {row['why']}" for row in doubts.to_dict("records")]
    bars = fastest.bars(frame, runs.tables["timings"])
    spans = ([f"{one:g}" for one in sorted(frame[name].dropna().unique())] for name in ("rounds", "num_samples"))
    rounds, samples = (" or ".join(span) for span in spans)
    parts = [
        f"Measured on {machine(runs)}, {rounds} paired rounds and {samples} samples a cell. "
        f"{int(bars['met'].eq(True).sum())} of the {len(bars)} bars that were set are met.",
        markdown(pd.DataFrame(rows), COLUMNS),
        *([f"Deviation within the budget is not all of quality. {'; '.join(why)}."] if why else []),
        f"From a batch of {BATCH} on, part of the gain is that `auto` may run networks in bfloat16; given that too, "
        f"SeJD is {half.min():.2f} to {half.max():.2f} times as fast as SeJD in float32.",
        origin(provenance(runs.runs)),
    ]
    return "\n\n".join(part if part.startswith("|") else _filled(part) for part in parts)


def _quality(valid: str, fid: float) -> str:
    return f"{valid} (deviation only)" if pd.isna(fid) else valid


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(write(*map(Path, sys.argv[1:] or ("README.md", "results"))))
