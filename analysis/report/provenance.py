"""What the page says about the runs themselves: their scope, how they were measured, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.drift import LEFT_OUT, doubts
from analysis.load import Runs
from analysis.quality import break_conditions, warnings
from analysis.report.render import Grid
from analysis.statistics import MIN_ROUNDS
from analysis.text import DASH, listing


@dataclass(frozen=True)
class Summary:
    """The head of the page."""

    runs: list[str]
    scope: str
    notes: list[str]


def summary(runs: Runs) -> Summary:
    """Names of the runs, a sentence on what they hold, and what a reader should know first."""
    cells = runs.cells
    names = [run.path.resolve().name for run in runs.runs]
    if cells.empty:
        return Summary(names, "Nothing has been measured yet.", list(runs.notes))
    flows, decoders = list(dict.fromkeys(cells["flow"])), list(dict.fromkeys(cells["series"]))
    batches = sorted(int(batch) for batch in cells["batch_size"].dropna().unique())
    scope = (
        f"{_count(len(cells), 'cell')} of {_count(len(flows), 'flow')} ({listing(flows)}), "
        f"{_count(len(decoders), 'decoder')} ({'; '.join(decoders)}) and "
        f"{_count(len(batches), 'batch size')} ({listing([str(batch) for batch in batches])})."
    )
    return Summary(names, scope, [*runs.notes, *_notes(runs), *_broken(runs)])


def _broken(runs: Runs) -> list[str]:
    cells, tables = runs.cells, runs.tables
    if cells["group_id"].isna().any():  # a run without the table `cells`
        return []
    found = break_conditions(cells, tables["layers"], tables["quality"])
    return [
        f"Warning, {flow}, batch {batch}: {sentence}"
        for (flow, batch), group in cells.groupby(["flow", "batch_size"], sort=False)
        for sentence in warnings(found[found["cell_id"].isin(group["cell_id"])], group)
    ]


def _notes(runs: Runs) -> list[str]:
    notes = []
    timings, cells = runs.tables["timings"], runs.cells
    if untimed := len(cells) - cells["cell_id"].isin(timings["cell_id"]).sum():
        notes.append(f"{_count(untimed, 'cell')} of {len(cells)} {'has' if untimed == 1 else 'have'} not been timed.")
    words = timings[~timings["status"].isin(["ok", LEFT_OUT])].groupby("status")["cell_id"].nunique()
    if len(words):
        bad = listing([f"{count} cells {status}" for status, count in words.items()])
        notes.append(f"Timing ended badly: {bad}.")
    rounds = timings[timings["status"] == "ok"].groupby("cell_id").size()
    if len(rounds) and rounds.min() < MIN_ROUNDS:
        few = _count(int(rounds.min()), "round")
        notes.append(f"Some cells have {few} only; below {MIN_ROUNDS} a median gets no interval.")
    facts = [(run.path.resolve().name, run.environment) for run in runs.runs]
    changed = [name for name, found in facts if (found.get("git") or {}).get("changed")]
    if changed:
        were = "was" if len(changed) == 1 else "were"
        notes.append(f"The code had uncommitted changes when {listing(changed)} {were} made.")
    if len({found.get("fingerprint") for _, found in facts}) > 1:
        notes.append("The runs come from different machines or versions of torch: their absolute times do not compare.")
    return notes + doubts(cells, runs.tables["sentinels"], runs.tables["devices"])


def method(runs: Runs) -> list[str]:
    """How the numbers came about, a sentence each; the matrices' own figures."""
    sentences = [
        "Within one dataset, checkpoint and batch size every round decodes each cell once, in shuffled order, from the "
        "same latents, and encodes once: ratios within a round are free of the machine's drift. A speed-up is the "
        "median of these ratios with an interval between two of them that covers it in 95 % of experiments, or as "
        "often as stated.",
        "Timing, memory, traces and quality are separate passes. Layer 1 is the first one inverted, next to the prior. "
        "FPE are forward-pass equivalents, token evaluations over those of one forward pass; depth counts the network "
        "calls that must follow each other. Both are the same on every machine.",
    ]
    for run in runs.runs:
        matrix = run.matrix
        timing, quality = matrix.get("timing") or {}, matrix.get("quality") or {}
        words = []
        if "rounds" in timing:
            words.append(f"{timing['rounds']} rounds after {timing.get('warmup', 0)} of warm-up")
        if "num_samples" in quality:
            words.append(f"quality from {quality['num_samples']:,} samples")
        if "max_deviation" in quality:
            words.append(f"valid up to a deviation of {quality['max_deviation']:g} RMSE")
        if "max_fid_increase" in quality:
            words.append(f"and a FID {quality['max_fid_increase']:.0%} above sequential's")
        if words:
            name = f"{run.path.resolve().name} (matrix {matrix.get('name', 'without a name')})"
            sentences.append(f"{name}: {', '.join(words)}.")
    return sentences


_ROWS = {
    "processor": lambda facts: facts.get("cpu"),
    "GPU": lambda facts: facts.get("gpu"),
    "device": lambda facts: facts.get("device"),
    "cores": lambda facts: facts.get("logical_cores"),
    "threads": lambda facts: facts.get("threads"),
    "memory": lambda facts: f"{facts['memory_bytes'] / 2**30:.0f} GiB" if facts.get("memory_bytes") else None,
    "platform": lambda facts: facts.get("platform"),
    "CUDA": lambda facts: facts.get("cuda"),
    "Python": lambda facts: facts.get("python"),
    "packages": lambda facts: ", ".join(f"{name} {version}" for name, version in (facts.get("packages") or {}).items()),
    "commit": lambda facts: ((facts.get("git") or {}).get("commit") or "")[:12],
    "fingerprint": lambda facts: facts.get("fingerprint"),
}


def environment(runs: Runs) -> Grid:
    """A column per run: where it was made."""
    facts = [run.environment for run in runs.runs]
    names = [run.path.resolve().name for run in runs.runs]
    rows = [[name, *(str(tell(fact) or DASH) for fact in facts)] for name, tell in _ROWS.items()]
    rows.append(["started", *(_started(run.manifest) for run in runs.runs)])
    return Grid(["", *names], rows)


def _started(manifest: dict[str, Any]) -> str:
    sessions = (manifest.get("sessions") or {}).values()
    times = sorted(str(one["started"]) for one in sessions if one.get("started"))
    return ", ".join(times) or DASH


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
