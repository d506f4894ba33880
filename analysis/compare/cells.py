"""What a run knows of each of its cells, as far as a comparison needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.drift import quiet_run
from analysis.quality import valid_cells
from analysis.statistics import BASELINE, paired_ratios
from harness.runs.store import Run


@dataclass(frozen=True)
class CellFacts:
    """What a run knows of one cell."""

    description: dict[str, Any]
    rounds: pd.DataFrame  # of `paired_ratios`: those that count
    told: str | None  # what there is to say of rounds that do not
    noisy: bool  # whether too few are left for a verdict on times
    layers: pd.DataFrame
    quality: dict[str, Any]
    cache_bytes: float
    errors: list[str]
    valid: str | None = None  # and why not, see `analysis.quality.valid_cells`
    why: str | None = None

    @property
    def speedups(self) -> np.ndarray:
        """(rounds,) sequential's time over the cell's own."""
        return self.rounds["ratio"].dropna().to_numpy()

    @property
    def speedup(self) -> float:
        return float(np.median(self.speedups)) if len(self.speedups) else np.nan


def cells_of(run: Run) -> dict[str, CellFacts]:
    """Every cell of a run by its `cell_key`."""
    cells = run.table("cells").set_index("cell_id", drop=False)
    quiet, timings = quiet_run(run), run.table("timings")
    good = paired_ratios(quiet.timings[quiet.timings["status"] == "ok"], BASELINE)
    quality = run.table("quality").drop(columns="cell_key").join(cells[["group_id", "decoder"]], on="cell_id")
    tolerances = run.matrix.get("quality", {})
    judged = valid_cells(quality, tolerances, BASELINE).set_index(quality["cell_id"])
    memory = run.table("memory")
    failed = pd.concat([table[table["status"] != "ok"] for table in (timings, quality, memory)], ignore_index=True)
    rounds, layers = good.groupby("cell_id"), run.table("layers").groupby("cell_id")
    return {
        str(cell["cell_key"]): CellFacts(
            description={str(name): value for name, value in cell.items()},
            rounds=rounds.get_group(key) if key in rounds.groups else good.iloc[:0],
            told=quiet.told.get(cell["group_id"]),
            noisy=cell["group_id"] in quiet.noisy,
            layers=layers.get_group(key).sort_values("layer") if key in layers.groups else pd.DataFrame(),
            quality=next(iter(quality[quality["cell_id"] == key].to_dict("records")), {}),  # type: ignore[arg-type]
            cache_bytes=memory.loc[memory["cell_id"] == key, "cache_bytes"].max(),
            **(judged.loc[key].to_dict() if key in judged.index else {}),
            errors=sorted({str(row.error) for row in failed[failed["cell_id"] == key].itertuples()}),
        )
        for key, cell in ((str(cell["cell_id"]), cell) for cell in cells.to_dict("records"))
    }
