"""Paired speed-ups: what they pair, what they leave out, and that their intervals hold what they promise."""

import numpy as np
import pandas as pd
import pytest

from analysis.statistics import MIN_ROUNDS, median_interval, paired_speedups
from analysis.text import speedup
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


@pytest.mark.parametrize("rounds", [MIN_ROUNDS, 7, 10, 20, 50])
@pytest.mark.parametrize("heavy", [False, True], ids=["lognormal", "with outliers"])
def test_the_interval_covers_the_median_as_often_as_it_says(rounds, heavy):
    """4,000 experiments: three standard errors of the share that covers are 0.7 to 1.1 %."""
    rng, experiments = np.random.default_rng(rounds), 4000
    values = rng.lognormal(0, 0.3, (experiments, rounds))
    if heavy:  # half of them far slower, half far faster: the median stays
        values = np.where(rng.random(values.shape) < 0.1, values ** rng.choice([-20, 20], values.shape), values)
    found = [median_interval(row) for row in values]
    (coverage,) = {interval.coverage for interval in found}
    held = np.mean([interval.low <= 1.0 <= interval.high for interval in found])
    assert held == pytest.approx(coverage, abs=3 * (coverage * (1 - coverage) / experiments) ** 0.5)
    assert coverage >= 0.95 or (rounds == MIN_ROUNDS and coverage == 0.9375)


def test_an_interval_that_covers_too_seldom_says_so():
    found = paired_speedups(table(rounds_of("sequential", [8.0] * 5), rounds_of("sejd", [2.0, 2.0, 2.0, 4.0, 1.0])))
    row = found.set_index("decoder").loc["sejd", ["speedup", "low", "high", "coverage"]]
    assert speedup(*row) == "4.00x [2.00, 8.00; 93.8 %]"
    assert speedup(*median_interval(np.arange(1.0, 8.0))) == "4.00x [1.00, 7.00]", "7 rounds: their whole range"
    assert median_interval(np.arange(20.0))[1:3] == (5.0, 14.0), "20 rounds: the sixth to the fifteenth"
