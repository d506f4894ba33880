"""What a run found, printed in the form of the SeJD paper's Table 1 (arXiv 2505.24791): a table per flow and batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.drift import doubts, quiet_run
from analysis.quality import INVALID, UNDECIDED, VALID, break_conditions, valid_cells, warnings
from analysis.recommendation import SETTING, Recommendation, best_of, recommendation
from analysis.statistics import BASELINE, layer_costs, paired_speedups
from analysis.text import flow_titles, print_table, speedup
from harness.errors import StoreError
from harness.runs.store import Run
from harness.runs.titles import flow_title, parsed, title

_QUALITY = ["fid", "fid_features", "kid", "kid_std", "num_samples", "deviation_rmse", "valid", "why"]
_NUMBERS = ("tau", "time s", "speed-up", "fwd", "FID", "KID", "deviation", "FPE", "depth")
_LESS_NEEDED = ("KID", "depth", "iterations per layer", "FPE", "fwd", "FID", "time s")
"""Columns that a narrow terminal goes without, the first one first."""


def summarise(run: Run) -> pd.DataFrame:
    """One row per cell, in the order of the run's cells: speed-up, quality, costs, and the first pass that ended badly.

    `valid` and `why` are those of `analysis.quality.valid_cells`.
    """
    cells = run.table("cells")[["cell_id"]]
    frame = cells.merge(paired_speedups(quiet_run(run).timings, BASELINE), on="cell_id")
    quality = run.table("quality").merge(frame[["cell_id", "group_id", "decoder"]], on="cell_id")
    quality = quality.join(valid_cells(quality, tolerance(run)))
    frame = frame.merge(quality[["cell_id", *_QUALITY]], on="cell_id", how="left")
    shape = run.table("cells")[["cell_id", "num_tokens", "num_layers"]]
    costs = layer_costs(run.table("layers").merge(shape, on="cell_id"))
    frame = frame.merge(costs, on="cell_id", how="left").merge(_outcomes(run), on="cell_id", how="left")
    return frame.assign(flow=flow_titles(frame))


def tolerance(run: Run) -> dict[str, float]:
    """How much a cell's quality may differ from sequential's, as the run's matrix states it."""
    names = ("max_deviation", "max_fid_increase")
    try:
        return {name: float(run.matrix["quality"][name]) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the manifest of '{run.path}' does not state what its matrix tolerates: {error!r}") from error


def print_summary(run: Run, console: Console) -> None:
    """Print one table per flow, guidance and batch size, and what is needed to read them."""
    frame = summarise(run)
    absent = frame[frame["status"].eq("skipped") & frame["pass"].eq("timings")]
    frame = frame.drop(absent.index)
    broken = break_conditions(run.table("cells"), run.table("layers"), run.table("quality"), BASELINE)
    for setting, group in _settings(frame):
        cells, best = group.to_dict("records"), best_of(group)
        console.print()
        print_table(
            console,
            [_entries(cell) for cell in cells],
            title=_heading(setting),
            right=_NUMBERS,
            dropped=_LESS_NEEDED,
            bold=[number for number, cell in enumerate(cells) if best and cell["cell_id"] == best["cell_id"]],
        )
        for sentence in warnings(broken[broken["cell_id"].isin(group["cell_id"])], group):
            console.print(f"Warning: {escape(sentence)}", style="yellow", highlight=False)
        for cell in group[group["valid"].eq(UNDECIDED)].to_dict("records"):
            console.print(f"? {_name(cell)}: undecided, {escape(cell['why'])}.", highlight=False)
    limits = tolerance(run)
    console.print(
        "\nTime is the median of a batch's rounds; speed-up the median of paired rounds against sequential with its "
        "95 % interval; fwd the time in forward passes; deviation the RMSE to the sequential samples, in image units; "
        f"FPE forward-pass equivalents; done: a fixed amount of work, which no stopping rule judges. "
        f"{_validity(frame, limits)}; all with 95 % confidence, else undecided (?); a speed-up in brackets "
        "is of an invalid cell.",
        style="dim",
        highlight=False,
    )
    for features, rows in frame.dropna(subset=["fid"]).groupby("fid_features"):
        counts = ", ".join(f"{count:,.0f}" for count in sorted(rows["num_samples"].unique()))
        sentence = f"FID and KID: features of {escape(str(features))}, {counts} samples."
        console.print(sentence, style="dim", highlight=False)
    skipped = absent[["dataset", "checkpoint", "error"]].drop_duplicates().to_numpy()
    names = [f"Skipped: {dataset} ({checkpoint}): {reason}" for dataset, checkpoint, reason in skipped]
    for sentence in [*names, *_left_out(run)]:
        console.print(escape(sentence), style="yellow", highlight=False)
    for row in frame[frame["status"] != "ok"].to_dict("records"):
        sentence = f"{_name(row)}, batch {row['batch_size']}, {row['pass']}: {escape(str(row['error']))}"
        console.print(sentence, highlight=False)
    quiet, measured = quiet_run(run), run.table("cells")
    for sentence in [*quiet.sentences(measured), *doubts(measured, run.table("sentinels"), run.table("devices"))]:
        console.print(escape(sentence), style="yellow", highlight=False)
    for setting, group in _settings(frame):
        told = escape(str(recommendation(run, quiet, setting, group)))
        console.print(f"\n{told}", style="bold", highlight=False, soft_wrap=not console.is_terminal)


def _validity(frame: pd.DataFrame, limits: dict[str, float]) -> str:
    """What "valid" means here: FID has no part in it where none was measured."""
    deviation = f"deviation at most {limits['max_deviation']:g}"
    both = f"Valid: {deviation} and FID at most {limits['max_fid_increase']:.0%} above sequential's"
    if frame["fid"].notna().any():
        without = frame.groupby("dataset")["fid"].count().loc[lambda counts: counts == 0].index
        return both + "".join(f"; {name}: valid (deviation only)" for name in without)
    return f"Valid (deviation only): {deviation}; FID was not measured"


def recommendations(run: Run) -> list[Recommendation]:
    """What a run comes to: one sentence for every flow, batch size and setting that it measured."""
    frame, quiet = summarise(run), quiet_run(run)
    measured = frame[~(frame["status"].eq("skipped") & frame["pass"].eq("timings"))]
    return [recommendation(run, quiet, setting, group) for setting, group in _settings(measured)]


def _settings(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    for key, group in frame.groupby(SETTING, sort=False, dropna=False):
        yield dict(zip(SETTING, key, strict=True)), group


def _left_out(run: Run) -> list[str]:
    quality = run.table("quality").merge(run.table("cells")[["cell_id", "dataset"]], on="cell_id")
    sentences = []
    for dataset, rows in quality.groupby("dataset"):
        if retries := rows["nonfinite_retries"].fillna(0).sum():
            sentences.append(f"{dataset}: {retries:,.0f} layers were decoded again, exactly: they were not finite.")
        if skipped := rows["skipped_images"].fillna(0).max():
            sentences.append(f"{dataset}: {skipped:,.0f} corrupt real images were left out.")
        if rows["reference"].eq("shipped-test").any():
            sentences.append(f"{dataset}: FID and KID against the shipped features of the test split.")
    return sentences


def _heading(setting: dict[str, Any]) -> str:
    name, checkpoint = flow_title(setting), setting["checkpoint"]
    other = {setting["dataset"], checkpoint} - {name}
    told = f" ({', '.join(sorted(map(str, other)))})" if other else ""
    guidance = "" if pd.isna(setting["guidance"]) else f", guidance {json.loads(setting['guidance'])['scale']:g}"
    guidance += "" if pd.isna(setting["denoise"]) else f", denoised by {setting['denoise']:g}"
    return (
        f"{name}{told}{guidance}, batch {setting['batch_size']}, seed {setting['seed']}, "
        f"{setting['device']}, {setting['dtype']}, {setting['threads']} threads"
    )


def _entries(row: dict[Any, Any]) -> dict[str, str]:
    verdict = {VALID: "valid", INVALID: "invalid", UNDECIDED: "?"}.get(row["valid"], "")
    if row["status"] != "ok":
        verdict = f"{verdict}, {row['pass']}: {row['status']}".removeprefix(", ")
    iterations = row["iterations"] if isinstance(row["iterations"], str) else ""
    return {
        "decoder": title(row["label"], None, row["options"]),
        "tau": "" if "budget" in parsed(row["options"]) else _number(row["tau"], "g"),
        "time s": _number(row["wall_s"], ".3g"),
        "speed-up": _speedup(row),
        "fwd": _number(row["forward_ratio"], ".1f"),
        "FID": _number(row["fid"], ".2f"),
        "KID": _number(row["kid"], ".4f") + ("" if pd.isna(row["kid_std"]) else f" ± {row['kid_std']:.4f}"),
        "deviation": _number(row["deviation_rmse"], ".2g"),
        "FPE": _number(row["fpe"], ".2f"),
        "depth": _number(row["depth"], ".0f"),
        "iterations per layer": f"{iterations}{', done' if iterations and row['state'] == 'done' else ''}",
        "": verdict,
    }


def _speedup(row: dict[Any, Any]) -> str:
    if pd.isna(row["speedup"]):
        return ""
    if row["decoder"] == BASELINE and row["speedup"] == row["low"] == row["high"] == 1:
        return "1"
    text = speedup(*(row[name] for name in ("speedup", "low", "high", "coverage")))
    return f"({text})" if row["valid"] == INVALID else text


def _name(row: dict[Any, Any]) -> str:
    return escape(title(row["label"], row["tau"], row["options"]))


def _number(value: float | None, form: str) -> str:
    return "" if value is None or pd.isna(value) else format(value, form)


def _outcomes(run: Run) -> pd.DataFrame:
    tables = {name: run.table(name) for name in ("timings", "failures", "quality", "memory")}
    named = [frame.assign(**({} if name == "failures" else {"pass": name})) for name, frame in tables.items()]
    columns = ["cell_id", "status", "error", "pass"]
    outcomes = pd.concat([frame[columns] for frame in named if len(frame)] or [named[0][columns]], ignore_index=True)
    outcomes = outcomes.assign(fine=outcomes["status"].eq("ok")).sort_values("fine", kind="stable")
    return outcomes.drop_duplicates("cell_id")[columns]
