"""Samples of every decoder from the same latents, side by side, and where they differ from the exact ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from analysis.figures.plot import Plot, require
from analysis.figures.style import figure, theme
from analysis.load import BASELINE, PAPER_TAU, Runs, highest, lowest, nearest_tau, one_batch, title_of
from analysis.text import listing, quantity

RANGE = 2.0
"""Of image units, [-1, 1]."""
WIDEST = 400
"""Pixels of a grid as it is drawn, 2.5 inches wide."""


def data(runs: Runs) -> pd.DataFrame:
    """One row per grid: its file and how far its pixels are from sequential's, in image units."""
    found = [
        {"cell_id": file.stem, "_path": str(file)}
        for run in runs.runs
        for file in sorted(run.path.glob("samples/*.png"))
    ]
    files = pd.DataFrame(found, columns=["cell_id", "_path"]).drop_duplicates("cell_id", keep="last")
    grids = require(runs.cells.merge(files, on="cell_id"), "the runs hold no sample grid of a known cell")
    grids = one_batch(grids)
    grids = grids[grids["seed"] == grids.groupby("flow")["seed"].transform("min")]
    grids = nearest_tau(grids).drop_duplicates(["flow", "series"])
    rows = [row for _, flow in grids.groupby("flow", sort=False) for row in _compared(flow)]
    return require(pd.DataFrame(rows), "no sample grid can be read")


def _compared(flow: pd.DataFrame) -> list[dict[str, object]]:
    exact = flow[flow["decoder"] == BASELINE]
    reference = _pixels(exact["_path"].iloc[0]) if len(exact) else None
    rows: list[dict[str, object]] = []
    for cell in flow.to_dict("records"):
        image = _pixels(cell["_path"])
        if image is None:
            continue
        row = {name: cell[name] for name in ("flow", "batch_size", "decoder", "series", "tau", "seed")}
        row |= {"title": title_of(cell), "height": image.shape[0], "width": image.shape[1]}
        if reference is not None and reference.shape == image.shape:
            apart = np.abs(image - reference)
            row |= {"rmse": float(np.sqrt(np.mean(apart**2))), "max": float(apart.max())}
        rows.append(row | {"_path": cell["_path"], "_reference": exact["_path"].iloc[0] if len(exact) else None})
    return rows


def _pixels(path: object) -> np.ndarray | None:
    """(H, W, 3) in image units; None when there is no file or it is no image."""
    if not isinstance(path, str):
        return None
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), dtype=float) / 255 * RANGE - 1
    except (OSError, ValueError):
        return None


def draw(frame: pd.DataFrame) -> Figure:
    """Grids above, amplified differences to sequential below, all on one scale."""
    images = [_pixels(path) for path in frame["_path"]]
    apart = [_difference(*pair) for pair in zip(images, map(_pixels, frame["_reference"]), strict=True)]
    scale = difference_scale([difference for difference in apart if difference is not None])
    columns = min(5, len(frame))
    rows = -(-len(frame) // columns)
    shape = float(np.median(frame["height"] / frame["width"]))
    with theme():
        fig = figure(2.5 * columns + 0.9, rows * (2 * 2.5 * shape + 0.8), scaled=True)
        axes = fig.subplots(2 * rows, columns, squeeze=False)
        mappable = None
        for place in range(rows * columns):
            above, below = (axes[2 * (place // columns) + half][place % columns] for half in (0, 1))
            for ax in (above, below):
                ax.set_axis_off()
            if place >= len(frame):
                continue
            image, difference = images[place], apart[place]
            if image is not None:
                above.imshow(np.clip((image + 1) / RANGE, 0, 1), interpolation=_resampled(image))
            above.set_title(frame["title"].iloc[place])
            if difference is not None and scale > 0 and frame["decoder"].iloc[place] != BASELINE:
                mappable = below.imshow(
                    difference, vmin=0, vmax=scale, cmap="magma", interpolation=_resampled(difference)
                )
                below.set_title(f"difference ×{RANGE / scale:g}", fontweight="normal", fontsize=8)
        if mappable is not None:
            bar = fig.colorbar(mappable, ax=axes, shrink=0.5, pad=0.01, extend="max")
            bar.set_label("|difference| to sequential, image units", fontsize=8)
    return fig


def _resampled(image: np.ndarray) -> str:
    """How a grid is drawn: by its own pixels, or by the figure's where these are fewer and keep the page small."""
    return "antialiased" if image.shape[1] > WIDEST else "none"


def _difference(image: np.ndarray | None, reference: np.ndarray | None) -> np.ndarray | None:
    if image is None or reference is None or image.shape != reference.shape:
        return None
    return np.abs(image - reference).max(axis=2)


def difference_scale(differences: list[np.ndarray]) -> float:
    """The difference drawn brightest: the 99.5th percentile of all, rounded up to 1, 2 or 5 times a power of ten."""
    tops = [max((float(np.quantile(one, share)) for one in differences), default=0.0) for share in (0.995, 1.0)]
    top = next((value for value in tops if value > 0), 0.0)
    if not top:
        return 0.0
    power = 10.0 ** np.floor(np.log10(top))
    return min(RANGE, next(step * power for step in (1, 2, 5, 10) if top <= step * power * (1 + 1e-9)))


def finding(frame: pd.DataFrame) -> str:
    """Which decoder's grid differs least and which most."""
    batch = frame["batch_size"].iloc[0]
    compared = frame[frame["decoder"] != BASELINE]
    compared = compared.dropna(subset=["rmse"]) if "rmse" in compared else compared.iloc[:0]
    if compared.empty:
        return f"At batch {batch} there is nothing to compare with {BASELINE}: {listing(list(frame['title']))} alone."
    near, far = lowest(compared, "rmse"), highest(compared, "rmse")
    sentence = (
        f"At batch {batch} the grid of {near['title']} differs from sequential's by {quantity(near['rmse'])} RMSE, "
        f"at most {quantity(near['max'])} in a pixel"
    )
    if near["title"] == far["title"]:
        return sentence + "."
    return (
        f"{sentence}: the nearest; farthest is {far['title']} with {quantity(far['rmse'])} RMSE, at most "
        f"{quantity(far['max'])} in a pixel."
    )


READING = (
    f"Of each decoder the cell with tau nearest to {PAPER_TAU:g}. Below each grid the largest difference over "
    "channels to the sequential samples, amplified by the factor above it; brightest is beyond the scale. "
    "Differences are read from the stored 8-bit images, so they are whole multiples of 1/127.5; the RMSE is "
    "over the whole grid, the gaps between images included."
)

PLOTS = [Plot("samples", "Samples from the same latents", READING, data, draw, finding)]
