"""Discrete tokens: network calls by temperature, first guess and window, speed-up, a continuous flow beside them."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.guesses import FLOOR, samples
from analysis.figures.redundancy import probed
from analysis.figures.style import INK, MARKERS, layer_lines, log_axis, palette, panels
from analysis.load import Runs
from analysis.published import published
from analysis.studies.base import Finding, Findings
from analysis.studies.cells import deterministic, rounds, speed, with_interval
from analysis.text import listing, quantity

FLOW, BESIDE = "discrete-digits", "digits"
CLAIM, TEMPERATURE = "open-other-models", 1.0
"""What is answered, and at which temperature: that which the model was trained at."""
KEYS = ["temperature", "guess", "window"]
GREEDY = "greedy"
"""The first guess that is the exact sample at temperature 0, where its calls say nothing."""
HALF_LEVEL = 1 / 16
"""Of a grey level, in image units: the error of a continuous pixel below which its level is right."""


def findings(runs: Runs) -> Findings:
    """Medians over samples; calls are of one sample alone, a batch takes as many as its slowest."""
    rows = probed(runs, "drafts", "drafts")
    drafts, cells, times = summary(rows), deterministic(runs), speed(runs)
    wrong, continuous = _curves(runs, int(rows["levels"].iloc[0]))
    warm = drafts[drafts["temperature"] == TEMPERATURE].sort_values("calls", kind="stable")
    whole = warm[warm["window"] == warm["window"].max()]
    text = published().query("key == 'language-models'").reset_index(drop=True)
    return Findings(
        tables={"drafts": drafts, "costs": cells, "wrong": wrong, "continuous": continuous, "published": text},
        timed={"speed": times, "rounds": rounds(runs)},
        figures={"temperature": draw_temperature(drafts), "convergence": draw_convergence(wrong, continuous)},
        values={
            "flow": FLOW,
            "beside": BESIDE,
            "temperature": TEMPERATURE,
            "tokens": int(rows["num_tokens"].iloc[0]) - 1,
            "levels": int(rows["levels"].iloc[0]),
            "best": whole.iloc[0].to_dict(),
            "worst": whole.iloc[-1].to_dict(),
            "by_rows": warm[warm["window"] < warm["window"].max()].iloc[0].to_dict(),
            "half_level": HALF_LEVEL,
            "to_level": continuous.drop_duplicates("layer")["to_level"].sum(),
            "half_wrong": int(wrong.loc[wrong["wrong"] <= wrong["wrong"].iloc[0] / 2, "iteration"].min()),
        },
        claims=tuple(_claims(drafts, cells, times)),
    )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per temperature, first guess and window; `gain` is the tokens over the median calls."""
    grouped = rows.groupby(KEYS, sort=True)
    calls = grouped["calls"]
    frame = pd.DataFrame(
        {
            "bits": grouped["bits"].mean(),
            "wrong": grouped["wrong"].mean(),
            "calls_p10": calls.quantile(0.1),
            "calls": calls.median(),
            "calls_p90": calls.quantile(0.9),
            "calls_most": calls.max(),
            "gain": (grouped["num_tokens"].first() - 1) / calls.median(),
            "held_out_bits": grouped["held_out_bits"].first(),
            "beside_bits": grouped["beside_bits"].first(),
            "samples": grouped.size(),
        }
    )
    return frame.reset_index()


def _curves(runs: Runs, levels: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """By iteration from zeros: tokens that are still wrong, and the error of each of the continuous flow's layers.

    Two one-hot tokens that differ are the root of 2 apart, whatever the levels.
    """
    rows = samples(runs)
    rows = rows[rows["iteration"] > 0]  # zeros are no level
    ours, other = rows[rows["flow"] == FLOW], rows[rows["flow"] == BESIDE]
    ours = ours.assign(wrong=ours["error_rms"] ** 2 * levels / 2 * ours["num_tokens"] / (ours["num_tokens"] - 1))
    grouped = ours.groupby("iteration")["wrong"]
    wrong = pd.DataFrame({"wrong": grouped.mean(), "exact": grouped.agg(lambda share: float((share == 0).mean()))})
    right = other[other["error_inf"] < HALF_LEVEL].groupby(["layer", "cell_id", "sample"], observed=True)["iteration"]
    to_level = right.min().groupby("layer").median().rename("to_level").reset_index()
    error = other.groupby(["layer", "iteration"])["error_rms"].median().rename("error").reset_index()
    return wrong.reset_index(), error.merge(to_level, on="layer", how="left")


def _claims(drafts: pd.DataFrame, cells: pd.DataFrame, times: pd.DataFrame) -> list[Finding]:
    whole = drafts[drafts["window"] == drafts["window"].max()]
    said = []
    for temperature, rows in whole.groupby("temperature"):
        rows = rows[(rows["guess"] != GREEDY) | (rows["temperature"] > 0)].sort_values("calls", kind="stable")
        best, worst = rows.iloc[0], rows.iloc[-1]
        said.append(
            f"{quantity(best['calls'])} (from {best['guess']}) to {quantity(worst['calls'])} (from {worst['guess']}) "
            f"at temperature {temperature:g}"
        )
    exact = cells.loc[cells["checkpoint"] == FLOW, "deviation_max"]
    measured = (
        f"the same decoders give the sequential sample, token for token, and network calls fall from "
        f"{whole['window'].max():g} to {listing(said)} (medians of single samples, all tokens at once)"
    )
    criterion = "calls were measured at every temperature from every guess, and no decoded sample deviates"
    found = [Finding(CLAIM, FLOW, measured, bool(exact.eq(0).all()), criterion)]
    rows = times[(times["checkpoint"] == FLOW) & (times["series"] == "ujd")]
    if len(rows) and rows["low"].notna().all():
        fast = [f"{with_interval(row)} at batch {row['batch_size']}" for row in rows.to_dict("records")]
        criterion = "UJD was timed at every batch size in five rounds or more"
        measured = f"UJD over sequential at temperature {TEMPERATURE:g}: {listing(fast)}"
        found.append(Finding(CLAIM, FLOW, measured, True, criterion, timed=True))
    return found


def draw_temperature(drafts: pd.DataFrame) -> Figure:
    """Median calls and their 10-90 % band against temperature, a line per first guess, a panel per window."""
    windows, guesses = sorted(drafts["window"].unique(), reverse=True), list(dict.fromkeys(drafts["guess"]))
    colors = palette(len(guesses))
    with panels(7.6, 3.3, len(windows), share_y=True) as (fig, axes, handles):
        for ax, window in zip(axes, windows, strict=True):
            for marker, color, guess in zip(MARKERS, colors, guesses, strict=False):
                rows = drafts[(drafts["window"] == window) & (drafts["guess"] == guess)]
                rows = rows[(rows["temperature"] > 0) | (guess != GREEDY)]
                if not rows.empty:
                    (handles[guess],) = ax.plot(rows["temperature"], rows["calls"], color=color, marker=marker)
                    ax.fill_between(rows["temperature"], rows["calls_p10"], rows["calls_p90"], color=color, alpha=0.1)
            ax.axhline(windows[0], color=INK, lw=1, ls=":")
            title = "all tokens at once" if window == windows[0] else f"{window} tokens at a time"
            ax.set(title=title, xlabel="temperature", xticks=sorted(drafts["temperature"].unique()), ylim=(0, None))
        axes[0].set_ylabel("network calls a sample")
    return fig


def draw_convergence(wrong: pd.DataFrame, continuous: pd.DataFrame) -> Figure:
    """Tokens that are still wrong by iteration, and beside it the error of every layer of the continuous flow."""
    with panels(7.6, 3.3, 2) as (fig, axes, handles):
        discrete, smooth = axes
        blue, orange = palette(2)
        steps = wrong["iteration"]
        (handles["tokens still wrong"],) = discrete.plot(steps, wrong["wrong"], color=blue, marker="o", ms=3)
        (handles["samples exact"],) = discrete.plot(steps, wrong["exact"], color=orange, ls="--")
        discrete.set(title="discrete tokens", xlabel="iteration", ylabel="share", ylim=(0, 1.02))
        lines = layer_lines(sorted(continuous["layer"].unique()))
        for layer, rows in continuous[continuous["error"] > FLOOR].groupby("layer"):
            (handles[f"layer {layer}"],) = smooth.plot(rows["iteration"], rows["error"], ms=3, **lines[layer])
        smooth.axhline(HALF_LEVEL, color=INK, lw=1, ls=":")
        log_axis(smooth.yaxis)
        smooth.set(title="continuous flow", xlabel="iteration", ylabel="error (RMS, median)")
    return fig
