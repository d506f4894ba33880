"""The bars of the fastest decoder are held against what a table says."""

import pandas as pd
import pytest
import synthetic

from analysis.fastest import AUTO, STRICT, bars, shares, write
from harness.errors import HarnessError


def cell(series, tau, wall_s, deviation, decoder=None, **more):
    row = {
        "cell_id": f"{series} {tau}",
        "flow": "f",
        "batch_size": 16,
        "series": series,
        "decoder": decoder or series,
        "tau": tau,
        "wall_s": wall_s,
    }
    ratios = {"over_sejd": 1.0 / wall_s, "over_sejd_low": 0.9 / wall_s, "over_sejd_high": 1.1 / wall_s}
    ratios |= {"over_sejd_coverage": 0.9375}
    return (
        row
        | ratios
        | {"deviation_rmse": deviation, "fid": 2.0, "forward_ratio": 5 * wall_s, "first_layer_share": 0.5}
        | more
    )


def timings(cells):
    """Five rounds, all slowed down alike: ratios within a round are those of the cells' own times."""
    rows = [
        {"cell_id": row["cell_id"], "group_id": "g", "session": "s", "round": i, "status": "ok",
         "wall_s": row["wall_s"] * (1 + i)}
        for row in cells for i in range(5)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def held(cells):
    return bars(pd.DataFrame(cells), timings(cells))


@pytest.fixture
def cells():
    return [
        cell("sequential", None, 2.0, 0.0),
        cell("sejd", 0.5, 1.0, 0.07),
        cell("sejd", 0.05, 1.6, 0.008),
        cell("ujd", 0.5, 0.8, 0.09),
        cell("fitted iterations=[2,1]", 0.5, 0.30, 0.069, "fitted"),
        cell(AUTO, 0.5, 0.29, 0.06, "auto"),
        cell(STRICT, 0.5, 0.6, 0.009, "auto"),
    ]


def test_every_bar_is_met_by_a_decoder_that_meets_them(cells):
    (row,) = held(cells).to_dict("records")
    assert row["over_sejd"] == "3.45x [3.10, 3.79; 93.8 %]"
    assert row["reached"] and row["no_larger"] and row["within_forward"] and row["not_slower"] and row["strict_reached"]
    assert row["fastest_other"] == "fitted iterations=[2,1] tau 0.5"
    assert row["best_classic"] == "sejd tau 0.05"
    assert row["over_classic"] == "2.67x [2.67, 2.67; 93.8 %]"
    assert row["over_other"] == "1.03x [1.03, 1.03; 93.8 %]"
    assert row["fid_no_larger"]


@pytest.mark.parametrize(
    ("place", "change", "bar"),
    [
        (5, {"over_sejd": 2.9}, "reached"),
        (5, {"deviation_rmse": 0.071}, "no_larger"),
        (5, {"fid": 2.1}, "fid_no_larger"),
        (5, {"forward_ratio": 1.6}, "within_forward"),
        (4, {"wall_s": 0.27}, "not_slower"),
        (6, {"wall_s": 1.1}, "strict_reached"),
        (6, {"deviation_rmse": 0.011}, "strict_reached"),
    ],
)
def test_a_bar_that_is_missed_is_told(cells, place, change, bar):
    cells[place] |= change
    assert not held(cells).iloc[0][bar]


def test_a_faster_decoder_of_larger_deviation_is_no_rival(cells):
    cells[3] |= {"wall_s": 0.01}
    assert held(cells).iloc[0]["not_slower"]


def test_shares_of_layer_1(cells):
    cells[1] |= {"first_layer_share": 0.9}
    assert shares(pd.DataFrame(cells)).iloc[0][["sequential", "sejd", "auto"]].tolist() == [0.5, 0.9, 0.5]


def test_runs_without_auto_are_told_in_a_sentence(tmp_path):
    run = synthetic.write_run(tmp_path / "run", list(synthetic.cells(batches=(16,))), images=False)
    with pytest.raises(HarnessError, match="these runs hold no `auto` beside sejd at tau 0.5"):
        write([run], tmp_path / "fastest.md")
    assert not (tmp_path / "fastest.md").exists()


def test_a_strict_budget_that_none_of_the_three_keeps_has_no_verdict_of_it():
    own = [cell("sejd", 0.5, 1.0, 0.1), cell(AUTO, None, 0.2, 0.05), cell(STRICT, None, 0.5, 0.009)]
    found = held(own)
    assert found["strict_deviation"].tolist() == [0.009] and "strict_reached" not in found
