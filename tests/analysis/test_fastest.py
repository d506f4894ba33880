"""The bars of the fastest decoder are held against what a table says."""

import re

import pandas as pd
import pytest
import synthetic

from analysis.fastest import AUTO, STRICT, bars, table, where, write
from analysis.load import load
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
    costs = {"over_sejd": 1.0 / wall_s, "speedup": 2.0 / wall_s, "forward_ratio": 4 * wall_s, "num_tokens": 64}
    return row | costs | {"deviation_rmse": deviation} | more


def timings(cells):
    """Five rounds, all slowed down alike: ratios within a round are those of the cells' own times."""
    rows = [
        {"cell_id": row["cell_id"], "group_id": "g", "session": "s", "round": i, "status": "ok",
         "wall_s": row["wall_s"] * (1 + i)}
        for row in cells for i in range(5)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def held(cells):
    return bars(pd.DataFrame(cells), timings(cells)).set_index("bar")


@pytest.fixture
def cells():
    return [
        cell("sequential", None, 2.0, 0.0),
        cell("sejd", 0.5, 1.0, 0.07),
        cell("sejd", 0.05, 1.6, 0.008),
        cell("ujd", 0.5, 0.8, 0.09),
        cell("fitted iterations=[2,1]", 0.5, 0.30, 0.069, "fitted"),
        cell(AUTO, 0.5, 0.29, 0.06, "auto"),
        cell(STRICT, 0.5, 0.5, 0.009, "auto"),
    ]


def test_every_bar_is_met_by_a_decoder_that_meets_them(cells):
    found = held(cells)
    assert found["met"].eq(True).all() and found["missed_by"].isna().all()
    assert found["asked"].to_dict() == {
        "over SeJD": 3.0,
        "over the fastest other": 1 / 1.05,
        "over sequential": 1.0,
        "deviation over SeJD's": 1.0,
        "forward passes": 1.35,
        "deviation, budget 0.01": 0.01,
        "forward passes, budget 0.01": 2.2,
    }
    assert found.loc["over the fastest other", "reached"] == pytest.approx(0.30 / 0.29)


@pytest.mark.parametrize(
    ("place", "change", "bar", "by"),
    [
        (5, {"over_sejd": 2.7}, "over SeJD", 0.1),
        (5, {"deviation_rmse": 0.077}, "deviation over SeJD's", 0.1),
        (5, {"forward_ratio": 1.62}, "forward passes", 0.2),
        (5, {"speedup": 0.75}, "over sequential", 0.25),
        (4, {"wall_s": 0.27}, "over the fastest other", 1 - 0.27 / 0.29 * 1.05),
        (6, {"forward_ratio": 2.42}, "forward passes, budget 0.01", 0.1),
        (6, {"deviation_rmse": 0.011}, "deviation, budget 0.01", 0.1),
    ],
)
def test_a_bar_that_is_missed_is_told_with_what_is_lacking(cells, place, change, bar, by):
    cells[place] |= change
    found = held(cells)
    assert not found.loc[bar, "met"] and found.loc[bar, "missed_by"] == pytest.approx(by)
    assert found["met"].eq(False).sum() == 1


@pytest.mark.parametrize(("tokens", "asked"), [(64, 2.2), (256, 3.0)])
def test_passes_within_the_strict_budget_are_asked_for_by_the_number_of_tokens(cells, tokens, asked):
    found = held([one | {"num_tokens": tokens} for one in cells])
    assert found.loc["forward passes, budget 0.01", "asked"] == asked


def test_at_batch_1_the_speed_over_sejd_is_4_and_no_forward_passes_are_asked_for(cells):
    found = held([one | {"batch_size": 1} for one in cells])
    assert found.loc["over SeJD", "asked"] == 4.0
    assert not {"forward passes", "forward passes, budget 0.01"} & set(found.index)


def test_what_was_not_measured_is_neither_met_nor_missed(cells):
    cells[5] |= {"speedup": float("nan")}
    assert held(cells).loc["over sequential", "met"] is None


def test_a_faster_decoder_of_larger_deviation_is_no_rival(cells):
    cells[3] |= {"wall_s": 0.01}
    assert held(cells).loc["over the fastest other", "met"]


def test_the_layers_of_a_decode_add_up_to_its_forward_passes(tmp_path):
    runs = load(synthetic.write_run(tmp_path / "run", list(synthetic.cells(batches=(16,))), images=False))
    (row,) = where(runs).query("series == 'sejd'").to_dict("records")
    frame = table(runs)
    total = frame.loc[frame["series"].eq("sejd") & frame["tau"].eq(0.5), "forward_ratio"].item()
    assert sum(map(float, row["passes"].split(", "))) == pytest.approx(total, rel=0.02)
    assert row["calls"].startswith("sequential ")


def test_runs_without_auto_are_told_in_a_sentence(tmp_path):
    run = synthetic.write_run(tmp_path / "run", list(synthetic.cells(batches=(16,))), images=False)
    with pytest.raises(HarnessError, match="these runs hold no `auto` beside sejd at tau 0.5"):
        write([run], tmp_path / "fastest.md")
    assert not (tmp_path / "fastest.md").exists()


def test_the_text_tells_bars_missed_layers_code_and_checkpoints(tmp_path):
    found = list(synthetic.cells(("sequential", "sejd", "auto"), taus=(0.5,), batches=(16,)))
    text = write([synthetic.write_run(tmp_path / "run", found, images=False)], tmp_path / "fastest.md").read_text()
    assert "Measured by code `v1` from the checkpoints `digits` (00000000)." in text
    assert re.search(r"\| 1\.2\d* \(missed by 5[89] %\) \|", text)  # over SeJD, of which 3 is asked
    assert "jacobi 10, jacobi 5, jacobi 5, jacobi 5" in text
