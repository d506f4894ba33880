"""How much faster the code has become: two commits' decoders side by side, in paired rounds.

    python benchmarks/before_after.py 739a8b9 --flow digits --out results/baselines-before-after.md

Each version runs in a process of its own, from its own checkout; every round both decode the same latents, in shuffled
order, so that drift of the machine cancels. Reported is the median of the per-round ratios with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

WORKER = """
import json, sys, time, torch
from harness.decoders import build_decoder
from harness.flows import load_flow
threads, clock = int(sys.argv[2]), getattr(time, sys.argv[3])
torch.set_num_threads(threads)
flow = load_flow(sys.argv[1])
for line in sys.stdin:
    name, batch = json.loads(line)
    latents = flow.sample_latents(batch, torch.Generator().manual_seed(0))
    if name == "encode":
        with torch.no_grad():
            images = flow.to_images(flow.scale_latents(latents))
            start = clock(); flow.encode(images); seconds = clock() - start
    else:
        decoder = build_decoder(name)
        start = clock(); decoder.decode(flow, latents); seconds = clock() - start
    print(json.dumps(seconds), flush=True)
"""


def worker(checkout: Path, flow: str, threads: int, clock: str) -> subprocess.Popen[str]:
    """A process that answers (decoder, batch) with seconds, using the code of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", WORKER, flow, str(threads), clock]
    return subprocess.Popen(
        command, cwd=checkout, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ask(process: subprocess.Popen[str], name: str, batch: int) -> float:
    """Seconds of one decode."""
    process.stdin.write(json.dumps([name, batch]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def compare(before: Path, after: Path, flow: str, rounds: int, threads: int, clock: str) -> list[str]:
    """Markdown rows, one per decoder and batch."""
    both = {"before": worker(before, flow, threads, clock), "after": worker(after, flow, threads, clock)}
    rows = []
    for name in ("encode", "sequential", "ujd", "sejd"):
        for batch in (1, 16, 64):
            times: dict[str, list[float]] = {version: [] for version in both}
            for attempt in range(rounds + 1):
                for version in random.sample(list(both), 2):
                    seconds = ask(both[version], name, batch)
                    if attempt:  # the first round warms up
                        times[version].append(seconds)
            ratios = [old / new for old, new in zip(times["before"], times["after"], strict=True)]
            low, high = interval(ratios)
            medians = [1e3 * statistics.median(times[version]) for version in both]
            ratio = statistics.median(ratios)
            rows.append(
                f"| {name} | {batch} | {medians[0]:.1f} | {medians[1]:.1f} | {ratio:.2f} | {low:.2f} to {high:.2f} |"
            )
            print(rows[-1], flush=True)
    for process in both.values():
        process.stdin.close()
        process.wait()
    return rows


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[-51]


def main() -> None:
    """Check out the older commit beside this one, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", help="the older commit")
    parser.add_argument("--flow", default="digits")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["perf_counter", "process_time"], default="perf_counter",
                        help="process_time counts CPU seconds, for a machine that others use too")  # fmt: skip
    parser.add_argument("--notes", type=Path, default=Path(__file__).with_name("tried.md"), help="appended as it is")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from harness.flows.checkpoints import checkpoint_path

    commits = [
        subprocess.check_output(["git", "rev-parse", "--short", name], cwd=ROOT, text=True).strip()
        for name in (given.before, "HEAD")
    ]
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        archive = subprocess.Popen(["git", "archive", commits[0]], cwd=ROOT, stdout=subprocess.PIPE)
        before.mkdir()
        subprocess.run(["tar", "-x", "-C", str(before)], stdin=archive.stdout, check=True)
        flow = str(checkpoint_path(given.flow).resolve())
        rows = compare(before, ROOT, flow, given.rounds, given.threads, given.clock)
    seconds = "CPU seconds" if given.clock == "process_time" else "wall seconds"
    text = [
        "# The baselines before and after",
        "",
        f"Commit {commits[0]} against {commits[1]} on the flow '{given.flow}', {given.threads} thread(s), "
        f"{platform.machine()}, {seconds}, {given.rounds} paired rounds; medians. Written by",
        f"`python benchmarks/before_after.py {given.before} --flow {given.flow} --rounds {given.rounds} "
        f"--threads {given.threads} --clock {given.clock} --out {given.out}`.",
        "",
        "| decode | batch | before, ms | after, ms | times faster | 95 % interval |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        given.notes.read_text().strip(),
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
