"""How far certificates can be trusted: estimated against true deviation, sample by sample."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.plot import Omitted, Plot
from analysis.figures.redundancy import probed
from analysis.figures.style import INK, log_axis, panels, styles
from analysis.load import Runs
from analysis.text import percent, quantity

FLOOR = 1e-5
"""Deviations below are rounding, and not drawn."""


def data(runs: Runs) -> pd.DataFrame:
    """One row per flow, decoder and sample whose deviation is more than rounding."""
    rows = probed(runs, "certificates", "certificate")
    columns = ["flow", "decoder", "series", "sample", "deviation_rmse", "estimate", "upper", "polished"]
    found = rows.assign(series=rows["spec"])[[*columns, "ratio_low", "ratio_median", "ratio_high"]]
    found = found[found["deviation_rmse"] > FLOOR]
    if found.empty:
        raise Omitted("every sample of the probe `certificate` is exact")
    return found.reset_index(drop=True)


def draw(frame: pd.DataFrame) -> Figure:
    """A point per sample; the line is a true estimate, the band what calibration says of 90 % of samples."""
    looks, ratio = styles(frame), frame.iloc[0]
    ends = np.array([frame["deviation_rmse"].min() / 1.5, frame["deviation_rmse"].max() * 1.5])
    with panels(4.6, 4.2) as (fig, (ax,), handles):
        low, high = (ends * ratio[name] / ratio["ratio_median"] for name in ("ratio_low", "ratio_high"))
        handles["5 to 95 %"] = ax.fill_between(ends, low, high, color=INK, alpha=0.1, lw=0)
        (handles["estimate = deviation"],) = ax.plot(ends, ends, color=INK, lw=0.9, alpha=0.6)
        for series, rows in frame.groupby("series", sort=False):
            look = looks[str(series)]
            (handles[str(series)],) = ax.plot(
                rows["deviation_rmse"], rows["estimate"], look.marker, color=look.color, ms=3.2, alpha=0.7, mew=0
            )
        for axis in (ax.xaxis, ax.yaxis):
            log_axis(axis)
        ax.set(xlim=ends, xlabel="deviation from the exact sample", ylabel="estimated from the certificate")
    return fig


def finding(frame: pd.DataFrame) -> str:
    """How many samples deviate by no more than their upper quantile, and how far the estimates are off."""
    inside = (frame["deviation_rmse"] <= frame["upper"]).mean()
    off = (frame["estimate"] / frame["deviation_rmse"]).quantile([0.05, 0.95])
    words = (
        f"Of {len(frame)} samples {percent(inside)} deviate by no more than their upper quantile says; estimates are "
        f"{quantity(off.iloc[0])} to {quantity(off.iloc[1])} times the deviation (5 to 95 %)"
    )
    polished = frame[frame["polished"]]
    if len(polished):
        words += f"; the largest deviation of the {len(polished)} polished ones is "
        words += quantity(polished["deviation_rmse"].max())
    return words + "."


READING = (
    "Each point is a sample. The certificate is the RMS of encode(sample) less the latents, one forward pass; divided "
    "by the median ratio that harness calibrate measured of certificates of its size, on other samples, it estimates "
    "the deviation from the exact sample (RMSE, image units). The band is what calibration says of 90 % of samples of "
    "any size: a spread, no bound."
)

PLOTS = [Plot("certificates", "Certified against true deviation", READING, data, draw, finding)]
