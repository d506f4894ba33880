"""Paired speed-ups: what they pair, what they leave out, and that their intervals hold what they promise."""

import numpy as np
import pandas as pd
import pytest

from analysis.statistics import MIN_ROUNDS, median_interval, paired_speedups
from harness.runs.tables import TABLES


def rounds_of(decoder, wall_s, *, session="a", first=0, status="ok", label=None, group="g"):
    label = label or decoder
    return [
        {
            "cell_id": f"{group}/{label}",
            "group_id": group,
            "decoder": decoder,
            "label": label,
            "session": session,
            "round": first + number,
            "wall_s": seconds,
            "forward_ratio": None if seconds is None else seconds / 0.5,
            "status": status,
        }
        for number, seconds in enumerate(wall_s)
    ]


def table(*parts):
    return TABLES["timings"].to_arrow([row for part in parts for row in part]).to_pandas()


def test_a_machine_that_slows_down_cancels():
    drift = np.array([1.0, 3.0, 9.0, 2.0, 5.0])
    found = paired_speedups(table(rounds_of("sequential", 8 * drift), rounds_of("sejd", 2 * drift)))
    sejd = found.set_index("decoder").loc["sejd"]
    assert (sejd["speedup"], sejd["low"], sejd["high"]) == (4.0, 4.0, 4.0)
    assert sejd["wall_s"] == 2 * np.median(drift)
    assert sejd["pairs"] == sejd["rounds"] == 5


def test_rounds_of_other_sessions_are_no_pairs():
    found = paired_speedups(
        table(
            rounds_of("sequential", [8.0] * 3),
            rounds_of("sejd", [2.0] * 3),
            rounds_of("sejd", [800.0] * 3, session="b", first=3),
        )
    ).set_index("decoder")
    assert found.loc["sejd", "speedup"] == 4.0
    assert found.loc["sejd", "pairs"] == 3
    assert found.loc["sejd", "rounds"] == 6


def test_one_round_has_a_speedup_and_no_interval():
    found = paired_speedups(table(rounds_of("sequential", [8.0]), rounds_of("sejd", [2.0]))).set_index("decoder")
    assert found.loc["sejd", "speedup"] == 4.0
    assert found.loc["sejd", ["low", "high", "forward_ratio_low"]].isna().all()


def test_failed_rounds_and_missing_baselines_give_nothing():
    found = paired_speedups(
        table(
            rounds_of("sequential", [None, None], status="out-of-memory"),
            rounds_of("sejd", [2.0, 2.0]),
            rounds_of("ujd", [None], status="failed"),
        )
    ).set_index("decoder")
    assert found["speedup"].isna().all()
    assert found.loc["sejd", "wall_s"] == 2.0
    assert found.loc["ujd", "rounds"] == 0
    assert paired_speedups(table()).empty


def test_groups_are_kept_apart_and_the_plain_baseline_is_taken():
    found = paired_speedups(
        table(
            rounds_of("sequential", [8.0], group="small"),
            rounds_of("sequential", [1.0], group="small", label="a sequential of another kind"),
            rounds_of("sejd", [2.0], group="small"),
            rounds_of("sequential", [90.0], group="large"),
            rounds_of("sejd", [30.0], group="large"),
        )
    ).set_index("cell_id")
    assert found.loc["small/sejd", "speedup"] == 4.0
    assert found.loc["large/sejd", "speedup"] == 3.0


def test_the_order_of_rows_changes_nothing():
    rng = np.random.default_rng(3)
    rows = table(rounds_of("sequential", rng.gamma(9, 1, 9)), rounds_of("sejd", rng.gamma(9, 0.2, 9)))
    shuffled = rows.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(paired_speedups(rows), paired_speedups(shuffled))


@pytest.mark.parametrize("rounds", [MIN_ROUNDS, 12])
def test_the_interval_covers_the_median_as_often_as_it_says(rounds):
    rng = np.random.default_rng(0)
    experiments = 200
    held = 0
    for _ in range(experiments):
        interval = median_interval(rng.lognormal(0, 0.3, rounds), confidence=0.9)
        held += interval.low <= 1.0 <= interval.high
    assert held / experiments > 0.85
