"""Run folders as one set of tables: found, merged, and every row told which decoder, flow and setting it belongs to."""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.drift import quiet_run
from analysis.quality import valid_cells
from analysis.statistics import BASELINE, DESCRIPTION, paired_speedups
from analysis.summary import recommendations, summarise
from analysis.text import flow_titles
from harness.errors import StoreError
from harness.runs.store import MANIFEST, Run, read_run
from harness.runs.tables import TABLES, Table
from harness.runs.titles import parsed, title

PAPER_TAU = 0.5
"""What the papers use (arXiv 2505.24791, Algorithm 1)."""

DECODERS = ("sequential", "ujd", "sejd", "gs-jacobi", "frontier", "fitted", "auto")
"""The decoders that every reader meets, in the order of every legend; the others follow by name."""

ON_DEMAND = ("residuals",)
"""Tables with a row per network call, which may be larger than memory: read cell by cell, see `Runs.residuals`."""

CONTEXT = ["flow", "series", "tau", "batch_size", "seed", "decoder", "label", "num_tokens", "num_layers", "dataset"]
"""What `Runs.joined` adds to the rows of a table."""

SHOWN = {
    "flow": "flow", "batch_size": "batch", "label": "decoder", "tau": "tau", "wall_s": "time (s)",
    "speedup": "speed-up", "low": "from", "high": "to", "fid": "FID", "deviation_rmse": "deviation", "fpe": "FPE",
    "iterations": "iterations per layer", "state": "state", "valid": "valid",
}  # fmt: skip
"""The columns of a summary that a notebook shows, and their headings."""

_SETTING = ["dataset", "checkpoint", "guidance", "device", "dtype", "threads"]


@dataclass(frozen=True, repr=False)
class Runs:
    """One or several run folders, merged; a notebook shows their `summary`.

    `tables` has those of every run by name, and those that the runs' probes declared, `ON_DEMAND` aside. One that
    nobody measured is empty but typed.
    """

    runs: tuple[Run, ...]  # in the order given; of those that measured a cell with different code the last one counts
    tables: dict[str, pd.DataFrame]
    notes: tuple[str, ...] = ()  # what a reader should know of the merge

    def summary(self) -> pd.DataFrame:
        """One row per cell of every run that was measured by a matrix: speed-up, quality, costs, and how it ended."""
        found = [summarise(run) for run in self.runs if run.matrix]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame()

    def __repr__(self) -> str:
        paths = ", ".join(str(run.path) for run in self.runs)
        flows = len(self.tables["cells"]["checkpoint"].unique())
        return f"<{paths}: {len(self.tables['cells'])} cells of {flows} flow{'' if flows == 1 else 's'}>"

    def _repr_html_(self) -> str:
        told = [str(found) for run in self.runs if run.matrix for found in recommendations(run)]
        table = self.summary().reindex(columns=list(SHOWN)).rename(columns=SHOWN)
        sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in told)
        return table.to_html(index=False, border=0, na_rep="", float_format=lambda one: f"{one:.3g}") + sentences

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell: its description, and `flow` and `series`, the shortest names that tell it apart."""
        cells = _described(self.tables)
        if cells.empty:
            return cells.assign(flow=pd.Series(dtype=object), series=pd.Series(dtype=object))
        return ranked(cells.assign(flow=_flows(cells), series=_series(cells)))

    @cached_property
    def foreign(self) -> list[str]:
        """Decoders that are not this package's: of no version that one of `DECODERS` has."""
        return sorted(self.tables["cells"].loc[_foreign(self.tables["cells"]), "decoder"].unique())

    @cached_property
    def speedups(self) -> pd.DataFrame:
        """One row per timed cell, as `paired_speedups`, with the names of `cells`."""
        found = paired_speedups(self.tables["timings"], baseline=BASELINE)
        known = [name for name in found if name not in CONTEXT]
        return found[known].merge(self.cells[["cell_id", *CONTEXT]], on="cell_id")

    @cached_property
    def validity(self) -> pd.DataFrame:
        """One row per timed cell whose quality was measured: `cell_id`, and `valid` and `why` of `valid_cells`."""
        quality = self.joined("quality").merge(self.speedups[["cell_id", "group_id"]])
        return quality[["cell_id"]].join(valid_cells(quality, self.tolerance))

    def table(self, name: str) -> pd.DataFrame:
        """One of `tables`; of a probe that no run holds, without rows and columns."""
        return self.tables[name] if name in self.tables else pd.DataFrame()

    def joined(self, table: str) -> pd.DataFrame:
        """The rows of a table with the columns of `CONTEXT`; rows whose cell is not described are left out."""
        frame = self.tables[table].drop(columns=["cell_key", *CONTEXT], errors="ignore")
        return frame.merge(self.cells[["cell_id", "cell_key", *CONTEXT]], on="cell_id")

    @cached_property
    def cells_with_residuals(self) -> pd.DataFrame:
        """The rows of `cells` that have some in the table `residuals`."""
        measured = set().union(*(run.cell_ids("residuals") for run in self.runs))
        return self.cells[self.cells["cell_id"].isin(measured)]

    def residuals(self, cells: Collection[str]) -> pd.DataFrame:
        """The rows of the table `residuals` of some cells, without `cell_key`; `cell_id` is categorical.

        Of runs that measured the same cell the last one counts.
        """
        columns = [name for name in TABLES["residuals"].names if name != "cell_key"]
        left, found = set(cells), []
        for run in reversed(self.runs):
            found.append(run.rows("residuals", columns, left))
            left -= set(found[-1]["cell_id"].unique().to_pylist())
        return pa.concat_tables(found).unify_dictionaries().to_pandas(split_blocks=True, self_destruct=True)

    @property
    def tolerance(self) -> dict[str, float]:
        """By how much a decoder may differ from sequential and stay valid: the strictest that the matrices state."""
        stated = [run.matrix.get("quality", {}) for run in self.runs]
        limits = {
            name: [quality[name] for quality in stated if quality.get(name) is not None]
            for name in ("max_deviation", "max_fid_increase")
        }
        return {name: min(values) for name, values in limits.items() if values}


def load(paths: Path | str | Sequence[Path | str]) -> Runs:
    """Read a run folder or several, or folders that hold some at any depth, and merge them."""
    several = [paths] if isinstance(paths, Path | str) else paths
    runs = [read_run(folder) for path in several for folder in find_runs(Path(path))]
    known = {name: table for run in runs for name, table in run.tables.items()} | TABLES
    quiet = [quiet_run(run) for run in runs]  # each by itself: the machine of one says nothing of another's rounds
    held = [
        {name: run.table(name) for name in run.tables if name not in ON_DEMAND} | {"timings": one.timings}
        for run, one in zip(runs, quiet, strict=True)
    ]
    tables, notes = _one_version(
        {name: _merge(table, [one.get(name) for one in held]) for name, table in known.items() if name not in ON_DEMAND}
    )
    told = dict.fromkeys(sentence for one in quiet for sentence in one.sentences(tables["cells"]))
    return Runs(tuple(runs), tables, (*notes, *told))


def find_runs(path: Path) -> list[Path]:
    """The run folders at or below a path, sorted; a `StoreError` where there is none."""
    if not path.is_dir() or (path / MANIFEST).is_file():
        return [path]
    found = sorted(file.parent for file in path.rglob(MANIFEST))
    if not found:
        raise StoreError(f"'{path}' is no run folder and holds none: there is no {MANIFEST} at or below it")
    return found


def _merge(table: Table, held: Sequence[pd.DataFrame | None]) -> pd.DataFrame:
    """All runs' rows of one table, those of the last run first, each key once; rounds of several sessions add up."""
    frames = [frame.assign(run=str(number)) for number, frame in enumerate(held) if frame is not None and len(frame)]
    if not frames:
        return table.empty().assign(run=pd.Series(dtype=object))
    key = [*table.key, "session"] if table.name in ("timings", "devices") else list(table.key)
    return pd.concat(frames[::-1], ignore_index=True).drop_duplicates(key).reset_index(drop=True)


def _one_version(tables: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """Of cells that differ in nothing but the code's version, only the one measured last."""
    cells = tables["cells"]
    superseded = cells[cells.duplicated("cell_key", keep="first")]
    versions = cells.loc[~_foreign(cells), "code_version"].nunique()
    notes = [f"These runs were made by {versions} versions of the code."] if versions > 1 else []
    if len(superseded):
        notes.append(
            f"{len(superseded)} cells were measured by several versions of what decodes; the page shows those of the "
            "run named last."
        )
    stale = set(superseded["cell_id"]) | _superseded_probes(tables["probes"])
    kept = {  # tables that tell of groups rather than cells stay whole
        name: frame[~frame["cell_id"].isin(stale)].reset_index(drop=True) if "cell_id" in frame else frame
        for name, frame in tables.items()
    }
    return kept, tuple(notes)


def _foreign(cells: pd.DataFrame) -> pd.Series:
    shipped = cells.loc[cells["decoder"].isin(DECODERS), "code_version"]
    return ~cells["code_version"].isin(shipped) & bool(len(shipped))


def _superseded_probes(probes: pd.DataFrame) -> set[str]:
    """Cells of probes that were run again with other code, in a later run folder or later in the same one."""
    if probes.empty:
        return set()
    last_run = probes[probes["run"] == probes.groupby("cell_key")["run"].transform("first")]
    return set(probes["cell_id"]) - set(last_run.drop_duplicates("cell_key", keep="last")["cell_id"])


def _described(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    columns = ["cell_id", *DESCRIPTION]
    cells = tables["cells"].reindex(columns=columns)
    timed = tables["timings"].reindex(columns=columns).drop_duplicates("cell_id")
    unknown = timed[~timed["cell_id"].isin(cells["cell_id"])]
    return pd.concat([frame for frame in (cells, unknown) if len(frame)] or [cells], ignore_index=True)


def _flows(cells: pd.DataFrame) -> pd.Series:
    """The flow's name or dataset, and of what else is set what differs within it."""
    names = base = flow_titles(cells)
    for column in _SETTING:
        text = cells[column].map(lambda value: "none" if pd.isna(value) else str(value))
        varies = text.groupby(base).transform("nunique") > 1
        if column == "checkpoint":  # most checkpoints are named after their dataset
            named_after = [one.startswith(of) for one, of in zip(text, names, strict=True)]
            words = text.where(pd.Series(named_after, index=cells.index), names + ", " + text)
        else:
            words = names + ", " + (f"{column} " if column in ("guidance", "threads") else "") + text
        names = names.where(~varies, words)
    return names


def _series(cells: pd.DataFrame) -> pd.Series:
    names = cells["label"].fillna(cells["decoder"]).astype(str)
    options = cells["options"].map(parsed)
    for label, group in options.groupby(names):
        keys = sorted(set().union(*group))
        seen = {key: {json.dumps(found[key], sort_keys=True) for found in group if key in found} for key in keys}
        varying = [key for key in keys if len(seen[key]) > 1]
        words = group.map(lambda found, keys=varying: [f"{key}={_plain(found[key])}" for key in keys if key in found])
        names = names.where(names != label, words.map(lambda parts, label=label: " ".join([label, *parts])))
    return names


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def one_batch(frame: pd.DataFrame, by: str = "flow") -> pd.DataFrame:
    """Of each flow the rows of one batch size: the one with most cells, the larger of equals."""
    count = frame.groupby([by, "batch_size"])["cell_id"].nunique().reset_index(name="cells")
    chosen = count.sort_values(["cells", "batch_size"]).groupby(by)["batch_size"].last()
    return frame[frame["batch_size"] == frame[by].map(chosen)]


def nearest_tau(frame: pd.DataFrame) -> pd.DataFrame:
    """Of each flow and series the rows at the tau nearest to the papers' `PAPER_TAU`, on a logarithmic scale."""
    distance = np.abs(np.log(frame["tau"].clip(lower=1e-9) / PAPER_TAU)).fillna(0)
    return frame[distance == distance.groupby([frame["flow"], frame["series"]]).transform("min")]


def ranked(frame: pd.DataFrame, *within: str) -> pd.DataFrame:
    """Rows in the order of every legend: by flow, batch size, decoder, series and tau, then by the columns named."""
    keys = ["flow", "batch_size", "_rank", "series", "tau", *(["seed"] if "seed" in frame else []), *within]
    order = frame.assign(_rank=frame["decoder"].map(decoder_rank)).sort_values(keys, kind="stable", ignore_index=True)
    return order.drop(columns="_rank")


def title_of(row: Any) -> str:
    """A cell in few words: series, and tau where it has one."""
    return title(str(row["series"]), row["tau"])


def highest(frame: pd.DataFrame, column: str) -> dict[str, Any]:
    """The row with the largest number in a column, the first of equals; NaNs do not count."""
    return frame.to_dict("records")[int(np.nanargmax(frame[column].to_numpy(dtype=float)))]  # type: ignore[return-value]


def lowest(frame: pd.DataFrame, column: str) -> dict[str, Any]:
    """The row with the smallest number in a column, the first of equals; NaNs do not count."""
    return frame.to_dict("records")[int(np.nanargmin(frame[column].to_numpy(dtype=float)))]  # type: ignore[return-value]


def decoder_rank(decoder: str) -> tuple[int, str]:
    """Sort key: the listed decoders in their order, then the others by name."""
    return (DECODERS.index(decoder) if decoder in DECODERS else len(DECODERS), decoder)
