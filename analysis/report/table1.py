"""The paper's Table 1 of some runs: every cell's time, speed-up, quality and cost, the published figures beside."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.drift import LEFT_OUT
from analysis.figures.plot import Table, require
from analysis.load import BASELINE, PAPER_TAU, Runs, highest, lowest, nearest_tau, ranked, title_of
from analysis.published import CITATION, reference
from analysis.quality import INVALID, UNDECIDED, VALID, valid_cells
from analysis.statistics import layer_costs, median_interval, ratios_to
from analysis.text import DASH, as_text, latex_text, listing, quantity, rows_of, times, times_to
from analysis.text import markdown as as_markdown

HEADINGS = {
    "flow": "flow",
    "batch_size": "batch",
    "title": "decoder",
    "time": "time per batch (s)",
    "speed": "speed-up [95 %]",
    "verdict": "valid",
    "floor": "forward passes",
    "fid_told": "FID",
    "kid_told": "KID",
    "deviation_rmse": "deviation",
    "fpe": "FPE",
    "depth": "depth",
    "published": "published: time, speed-up, FID",
    "iterations": "iterations per layer",
}
"""Column to heading, as shown; the CSV has the numbers behind each."""


def data(runs: Runs) -> pd.DataFrame:
    """One row per cell that anything is known of; failed cells keep their row and say why."""
    cells = require(runs.cells, "the runs hold no cell")
    frame = cells[["cell_id", "group_id", "flow", "dataset", "batch_size", "decoder", "series", "tau", "seed"]]
    numbers = ["wall_s", "images_per_s", "rounds", "speedup", "low", "high", "coverage", "forward_ratio"]
    numbers += ["forward_ratio_low", "forward_ratio_high"]
    frame = frame.merge(runs.speedups[["cell_id", *numbers]], on="cell_id", how="left")
    quality = runs.tables["quality"].drop(columns=["cell_key", "run", "error"], errors="ignore")
    costs = layer_costs(runs.joined("layers"))
    frame = frame.merge(quality, on="cell_id", how="left").merge(costs, on="cell_id", how="left")
    known = frame.assign(status=frame["status"].fillna("ok"))
    frame = frame.assign(
        valid=valid_cells(known, runs.tolerance)["valid"], failure=frame["cell_id"].map(_failures(runs))
    )
    frame.loc[frame["decoder"].eq(BASELINE) & frame["failure"].isna(), "valid"] = VALID
    frame = ranked(frame.assign(title=frame.apply(title_of, axis=1)))
    untimed = frame["failure"].astype(object).fillna("not timed")
    return frame.assign(
        time=frame["wall_s"].map(quantity).where(frame["wall_s"].notna(), untimed),
        speed=frame.apply(_with_interval, axis=1),
        floor=frame["forward_ratio"].map(_or_dash),
        fid_told=frame["fid"].map(lambda value: DASH if pd.isna(value) else quantity(value, 4)),
        kid_told=frame.apply(lambda row: _plus_minus(row["kid"], row["kid_std"]), axis=1),
        verdict=frame["valid"].map({VALID: "yes", INVALID: "no", UNDECIDED: "?"}).fillna(DASH),
        published=frame.apply(_published, axis=1),
        _cell_id=frame["cell_id"],
    ).drop(columns=["cell_id", "group_id"])


def _failures(runs: Runs) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("failures", "memory", "quality", "timings"):
        rows = runs.tables[name]
        bad = rows[~rows["status"].isin(["ok", "skipped", LEFT_OUT]) & rows["status"].notna()]
        passes = bad["pass"] if name == "failures" else name
        found |= dict(zip(bad["cell_id"], passes + ": " + bad["status"], strict=True))
    return found


def _or_dash(value: float) -> str:
    return DASH if pd.isna(value) else quantity(value)


def _with_interval(row: pd.Series) -> str:
    if pd.isna(row["speedup"]):
        return DASH
    sharp = pd.isna(row["low"]) or row["low"] == row["high"]
    return times(row["speedup"]) + ("" if sharp else f" [{times_to(*row[list(_ENDS)])}]")


_ENDS = ("low", "high", "coverage")


def _plus_minus(value: float, error: float) -> str:
    if pd.isna(value):
        return DASH
    return quantity(value) + ("" if pd.isna(error) else f" ± {quantity(error, 2)}")


def _published(row: pd.Series) -> str:
    if not (pd.isna(row["tau"]) or row["tau"] == PAPER_TAU) or row["series"] != row["decoder"]:
        return DASH
    words = []
    for name, form in (("time_s", "{:g} s"), ("speedup", "{:g}×"), ("fid", "FID {:g}")):
        rows = reference(name, str(row["dataset"]))
        words += [form.format(value) for value in rows.loc[rows["decoder"] == row["decoder"], "value"]]
    return ", ".join(words) or DASH


def markdown(frame: pd.DataFrame) -> str:
    """Table 1 as Markdown, the reference column marked."""
    return f"{as_markdown(frame, HEADINGS)}\n\nPublished: {CITATION}.\n"


def latex(frame: pd.DataFrame) -> str:
    """Table 1 as LaTeX with booktabs, the reference column marked."""
    table = rows_of(as_text(frame, HEADINGS))
    head, *body = (" & ".join(latex_text(cell) for cell in row) + r" \\" for row in table)
    opening = r"\begin{tabular}{" + "l" * len(HEADINGS) + "}"
    lines = [opening, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, f"% Published: {CITATION}.", ""])


@dataclass(frozen=True)
class Headline:
    """The best of one flow: a number, what it is the number of, and what it costs."""

    flow: str
    number: str
    words: str


def headlines(frame: pd.DataFrame) -> list[Headline]:
    """Of each flow the fastest cell that keeps its quality, where that is faster than the baseline."""
    found = []
    for flow, rows in frame.groupby("flow", sort=False):
        if rows.loc[rows["decoder"] == BASELINE, "wall_s"].isna().all():
            found.append(Headline(str(flow), DASH, f"{BASELINE} was not timed, so there is no speed-up"))
            continue
        judged = rows.loc[rows["decoder"] != BASELINE, "valid"].notna().any()
        kind = "valid " if judged else ""
        good = rows[rows["valid"].eq(VALID) if judged else rows["failure"].isna()]
        good = good[good["decoder"].ne(BASELINE) & good["speedup"].gt(1)]
        if good.empty:
            found.append(Headline(str(flow), DASH, f"no {kind}cell is faster than {BASELINE}"))
            continue
        best = highest(good, "speedup")
        interval = "no interval, too few rounds" if pd.isna(best["low"]) else times_to(*(best[name] for name in _ENDS))
        deviation = "" if pd.isna(best["deviation_rmse"]) else f", deviation {quantity(best['deviation_rmse'])}"
        alone = ", FID not measured" if judged and pd.isna(best["fid"]) else ""
        words = (
            f"{best['title']} at batch {best['batch_size']}, the fastest {kind}cell ({interval}); "
            f"{quantity(best['forward_ratio'])} forward passes{deviation}{alone}"
        )
        found.append(Headline(str(flow), times(best["speedup"]), words))
    return found


def against_baselines(frame: pd.DataFrame, runs: Runs) -> list[str]:
    """What each decoder that is not the package's reached at its fastest, valid where any is, against those that are.

    Speeds are medians of paired rounds; of each other decoder the cell called like it, with tau nearest to
    `PAPER_TAU`, counts.
    """
    good = runs.tables["timings"].query("status == 'ok'")
    sentences = []
    for (flow, batch, _), own in frame[frame["decoder"].isin(runs.foreign)].groupby(
        ["flow", "batch_size", "decoder"], sort=False
    ):
        own = own.dropna(subset=["wall_s"])
        valid = own[own["valid"].eq(VALID)]
        if own.empty:
            continue
        best = lowest(valid if len(valid) else own, "wall_s")
        others = frame[(frame["flow"] == flow) & (frame["batch_size"] == batch) & (frame["seed"] == best["seed"])]
        others = nearest_tau(others[~others["decoder"].isin(runs.foreign) & others["wall_s"].notna()])
        words = []
        others = others.assign(_own=others["series"] != others["decoder"]).sort_values("_own", kind="stable")
        for other in others.drop_duplicates("decoder").to_dict("records"):
            rounds = (good[good["cell_id"] == cell["_cell_id"]] for cell in (best, other))
            ratio = median_interval(ratios_to(*rounds)["ratio"])
            if pd.notna(ratio.value):
                interval = "too few rounds for an interval" if pd.isna(ratio.low) else times_to(*ratio[1:])
                apart = "" if pd.isna(other["deviation_rmse"]) else f", deviation {quantity(other['deviation_rmse'])}"
                words.append(f"{times(ratio.value)} as fast as {other['title']} ({interval}{apart})")
        if words:
            kept = {VALID: "is valid", INVALID: "is beyond the tolerance", UNDECIDED: "may be valid or not"}.get(
                best["valid"], "was not judged"
            )
            sentences.append(
                f"{best['series']} against the baselines on {flow}, batch {batch}: {best['title']}, its fastest"
                f"{' valid' if len(valid) else ''} cell, is {listing(words)}. Its deviation is "
                f"{quantity(best['deviation_rmse'])}; it {kept}."
            )
    return sentences


def finding(frame: pd.DataFrame) -> str:
    """How many cells are valid and faster than sequential, and how many failed."""
    others = frame[frame["decoder"] != BASELINE]
    timed = others.dropna(subset=["speedup"])
    known = timed.dropna(subset=["low"])
    faster = known[known["low"] > 1]
    valid = faster[faster["valid"] == VALID]
    failed = int(frame["failure"].notna().sum())
    if timed.empty:
        sentence = "No cell was timed together with sequential decoding."
    elif known.empty:
        sentence = f"{len(timed)} cells were timed, all in too few rounds for an interval: none is called faster."
    else:
        sentence = f"{len(faster)} of {len(known)} timed cells are faster than sequential, their whole interval above 1"
        sentence += f"; {len(valid)} of these keep their quality." if others["valid"].notna().any() else "."
    kinds = listing(sorted(frame["failure"].dropna().unique()))
    return sentence + (f" {failed} of {len(frame)} cells did not end well in some pass ({kinds})." if failed else "")


READING = (
    "Median wall time over rounds; the speed-up is the median of per-round ratios to sequential with its 95 % "
    "interval by order statistics, empty where there are too few rounds for one; forward passes are the wall time "
    "over that of encoding the same batch; deviation is the RMSE to the sequential samples in image units. The column "
    f"marked published is a reference, {CITATION}: never comparable in absolute time, nor in FID where flow or "
    "features differ."
)

TABLES = [Table("table1", "Table 1", READING, data, finding, HEADINGS, {"md": markdown, "tex": latex})]
