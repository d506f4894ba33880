"""The cost model turned on the paper's own numbers: what they imply, never something that was measured here."""

from __future__ import annotations

import pandas as pd

from analysis.published import published
from analysis.studies.ujd_loss.cost_model import predicted_speedup


def implied() -> pd.DataFrame:
    """One row per dataset of the paper: what its times and SeJD's iterations imply under the model.

    Sequential time gives S = time / K. SeJD's time, less one S, is c S times its published iterations; UJD's time then
    tells the iterations of all layers together, and so those of layer 1, which the paper does not state.
    """
    rows, found = published(), []
    for name, part in rows.groupby("name", sort=False):
        times = part[part["quantity"] == "time_s"].set_index("decoder")["value"]
        counts = part[part["quantity"] == "iterations"].set_index("layer")["value"]
        if counts.empty or not {"sequential", "ujd", "sejd"} <= set(times.index):
            continue
        layers, steps, rest = len(counts), float(counts.loc[1]), float(counts.drop(1).sum())
        layer_s = times["sequential"] / layers
        c = (times["sejd"] - layer_s) / (rest * layer_s)
        first = times["ujd"] / (c * layer_s) - rest
        mean = rest / (layers - 1)
        share = part[(part["quantity"] == "layer_share") & (part["layer"] == 1)]["value"]
        found.append(
            {
                "name": name,
                "layers": layers,
                "tokens": int(steps) + 1,
                "c": c,
                "steps_per_iteration": c * steps,
                "rest": rest,
                "break_even": layers / c,
                "break_even_first": layers / c - rest,
                "implied_first": first,
                "implied_share": first / steps,
                "speedup_ujd": times["sequential"] / times["ujd"],
                "speedup_sejd": times["sequential"] / times["sejd"],
                "first_share": float(share.iloc[0]) if len(share) else float("nan"),
                "predicted_share": layer_s / times["sejd"],
                "speedup_if_equal": predicted_speedup(layers, c, mean, mean, "ujd"),
            }
        )
    return pd.DataFrame(found)
