"""What a run comes to in one sentence: which decoder to use, what that gains and costs, and the Python lines for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.drift import Quiet
from analysis.quality import UNDECIDED, VALID, exact_fid
from analysis.statistics import BASELINE, median_interval, ratios_to
from analysis.text import duration, quantity, speedup
from harness.runs.store import Run
from harness.runs.titles import flow_title, parsed, title

SETTING = ["dataset", "checkpoint", "guidance", "denoise", "batch_size", "seed", "device", "dtype", "threads"]
"""What cells share whose decoders are compared with each other."""
RIVAL, RIVAL_TAU = "sejd", 0.5
"""The decoder beside sequential that every choice is compared with, as its paper uses it (arXiv 2505.24791)."""


@dataclass(frozen=True)
class Recommendation:
    """Which decoder to use for one flow and batch size.

    Args:
        decoder: its name and options, as ``--decoder`` takes them.
        python: lines that sample with it.
    """

    where: str
    decoder: str
    sentence: str
    python: str

    def __str__(self) -> str:
        return f"{self.where}: {self.sentence}"


def recommendation(run: Run, quiet: Quiet, setting: Mapping[str, Any], group: pd.DataFrame) -> Recommendation:
    """What the rows of one setting in `analysis.summary.summarise` say; `quiet` are the run's timings."""
    best = best_of(group)
    exact = group[group["decoder"] == BASELINE]
    chosen: dict[Any, Any] = best or next(iter(exact.to_dict("records")), {})
    named, options = _given(run, chosen)
    spec = " ".join([named, *(f"{name}={_toml(value)}" for name, value in options.items())])
    where = (
        f"{flow_title(setting)}, batch {setting['batch_size']}, {setting['device']}, {setting['dtype']}, "
        f"{setting['threads']} thread{'' if setting['threads'] == 1 else 's'}"
    )
    parts = _figures(run, quiet, best, group) if best else [_no_other(group)]
    rate = chosen.get("images_per_s")
    parts += [] if pd.isna(rate) else [f"1,000 images in about {duration(1000 / rate)}"]
    noisy = group["group_id"].isin(quiet.noisy).any()
    parts += ["times doubtful, since the machine was not quiet"] if noisy else []
    words = f"use {title(chosen['label'], chosen['tau'], chosen['options'])} (--decoder '{spec}')" if chosen else "none"
    sentence = f"{words}: {', '.join(parts)}."
    return Recommendation(where, spec, sentence, _python(run, setting, named, options))


def best_of(group: pd.DataFrame) -> dict[Any, Any] | None:
    """The fastest valid decoder that is faster than sequential.

    Where none is valid, the fastest that is undecided and deviates by no more than SeJD, the method of the paper.
    """
    faster = group[group["speedup"].gt(1) & group["decoder"].ne(BASELINE)]
    rival = _rival(group)
    near = faster["deviation_rmse"].le(rival["deviation_rmse"] if rival else float("-inf"))
    for judged in (faster["valid"].eq(VALID), faster["valid"].eq(UNDECIDED) & near):
        if judged.any():
            return faster[judged].nlargest(1, "speedup").to_dict("records")[0]
    return None


def _rival(group: pd.DataFrame) -> dict[Any, Any] | None:
    """SeJD, at the tau nearest to the paper's."""
    rivals = group[group["label"].eq(RIVAL) & group["speedup"].notna()].to_dict("records")
    return min(rivals, key=lambda row: abs(row["tau"] - RIVAL_TAU), default=None)


def _no_other(group: pd.DataFrame) -> str:
    """Why no other decoder is recommended; what is absent is no verdict."""
    others = group[group["decoder"].ne(BASELINE)]
    if others.empty:
        return f"no speed-up to tell, since nothing but {BASELINE} was measured here"
    if len(others) == len(group):
        return f"no speed-up to tell, since {BASELINE}, which the others are compared with, is not among the cells here"
    if others["speedup"].isna().all():
        return f"no speed-up to tell, since no round here was ended well by {BASELINE} and another decoder"
    if (others["speedup"].gt(1) & others["valid"].eq(UNDECIDED)).any():
        return f"another decoder is faster than {BASELINE} here, but whether it is valid these samples do not decide"
    if others[others["speedup"].gt(1)]["valid"].isna().any():
        return f"another decoder is faster than {BASELINE} here, but whether it is valid was not measured"
    return f"no other decoder is faster than {BASELINE} and valid here"


def _figures(run: Run, quiet: Quiet, best: Mapping[str, Any], group: pd.DataFrame) -> list[str]:
    words = f"{_times(*(best[name] for name in ('speedup', 'low', 'high', 'coverage')))} faster than sequential"
    unsure = " (its interval includes 1)" if best["low"] <= 1 else ""
    doubt = [f"whether it is valid is undecided ({best['why']})"] if best["valid"] == UNDECIDED else []
    return [words + unsure, _over_rival(quiet, best, group), _deviation(best), _fid(run, best, group), *doubt]


def _over_rival(quiet: Quiet, best: Mapping[str, Any], group: pd.DataFrame) -> str:
    rival = _rival(group)
    if rival is None:
        return "SeJD not measured"
    if rival["cell_id"] == best["cell_id"]:
        return "which is SeJD itself"
    good = quiet.timings[quiet.timings["status"] == "ok"].drop_duplicates(["cell_id", "session", "round"])
    mine, theirs = (good[good["cell_id"] == cell] for cell in (best["cell_id"], rival["cell_id"]))
    ratio = median_interval(ratios_to(mine, theirs)["ratio"])
    return f"{_times(*ratio)} {'faster than' if ratio.value >= 1 else 'as fast as'} SeJD at tau {rival['tau']:g}"


def _times(value: float, low: float, high: float, coverage: float) -> str:
    return speedup(value, low, high, coverage).replace("x", " times", 1)


def _deviation(best: Mapping[str, Any]) -> str:
    deviation = best["deviation_rmse"]
    return "deviation not measured" if pd.isna(deviation) else f"deviation {quantity(deviation, 2)}"


def _fid(run: Run, best: Mapping[str, Any], group: pd.DataFrame) -> str:
    quality = run.table("quality").merge(group[["cell_id", "group_id", "decoder"]], on="cell_id")
    exact = exact_fid(quality)
    for row, of_exact in zip(quality.to_dict("records"), exact, strict=True):
        if row["cell_id"] != best["cell_id"]:
            continue
        if pd.notna(row["fid"]) and pd.notna(of_exact):
            low, high = row["fid_rise_low"] * 100, row["fid_rise_high"] * 100
            interval = "" if pd.isna(low) else f" [{low:+.1f}, {high:+.1f}]"
            return f"FID {(row['fid'] / of_exact - 1) * 100:+.1f} %{interval} ({row['num_samples']:,.0f} samples)"
        if pd.notna(row["fid"]):
            return "FID not compared, because sequential's was not measured alike"
        wanted = run.matrix.get("quality", {}).get("num_samples") or 0
        few = f"{row['num_samples']:,.0f} samples are too few" if row["num_samples"] < wanted else "nothing was said"
        reason = few if pd.isna(row["error"]) else row["error"].removeprefix("no comparison with real images: ")
        return f"FID not measured, because {reason}"
    return "FID not measured, because quality was not"


def _given(run: Run, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a row's decoder and the options that the matrix gave it, tau among them where it takes one."""
    if not row:
        return BASELINE, {}
    known = parsed(row["options"])
    tables = run.matrix.get("decoders", [])
    names = {key for table in tables if table.get("name") == row["decoder"] for key in table} - {"name", "label", "tau"}
    given = {name: known[name] for name in sorted(names) if known.get(name) is not None}
    tau = {} if pd.isna(row["tau"]) or "budget" in known else {"tau": row["tau"]}
    return row["decoder"], tau | given


def _toml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _python(run: Run, setting: Mapping[str, Any], decoder: str, options: Mapping[str, Any]) -> str:
    """Lines that load the flow as it was named and sample with a decoder as the run did."""
    tables = run.matrix.get("datasets", [])
    named = {table.get("checkpoint") or table.get("name", ""): table.get("weights") for table in tables}
    alike = [one for one in named if setting["checkpoint"] in (one, Path(one).name, Path(one).stem)]
    flow = repr(str(alike[0] if alike else setting["checkpoint"]))
    flow += f", weights={named[alike[0]]!r}" if alike and named[alike[0]] else ""
    flow += "" if setting["device"] == "cpu" else f", device={setting['device']!r}"
    dtype = "'tf32'" if setting["dtype"] == "tf32" else f"torch.{setting['dtype']}"
    flow += "" if setting["dtype"] == "float32" else f", dtype={dtype}"
    built = "".join(f", {name}={value!r}" for name, value in options.items())
    more = "" if pd.isna(setting["guidance"]) else f", guidance=harness.Guidance(**{json.loads(setting['guidance'])})"
    more += "" if pd.isna(setting["denoise"]) else f", denoise={setting['denoise']:g}"
    return "\n".join(
        [
            *(["import torch"] if "torch." in flow else []),
            "import harness",
            f"flow = harness.load_flow({flow})",
            f"decoder = harness.build_decoder({decoder!r}{built})",
            f"drawn = harness.sample(flow, {setting['batch_size']}, decoder=decoder, "
            f"batch_size={setting['batch_size']}, seed={setting['seed']}{more})",
            "images = drawn.images  # (N, C, H, W), in [-1, 1]",
        ]
    )
