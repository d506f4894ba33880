"""The study of discrete tokens, on small tables whose answers are known."""

import pandas as pd
import pytest
from synthetic import cells, write_run

from analysis.load import load
from analysis.studies.discrete import findings as discrete
from analysis.studies.render import render_study

LEVELS, TOKENS = 17, 4


def drafts(calls):
    """Two samples at two temperatures and in two windows; `calls` by first guess at temperature 1."""
    rows = [
        {"temperature": temperature, "guess": guess, "window": window, "sample": sample, "bits": temperature,
         "wrong": 0.5, "calls": calls[guess] + sample * 2, "levels": LEVELS, "held_out_bits": 1.7, "beside_bits": 2.3,
         "num_tokens": TOKENS + 1, "dataset": "digits", "checkpoint": "discrete-digits"}
        for temperature in (0.0, 1.0) for guess in calls for window in (TOKENS, 2) for sample in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def convergence():
    """Two wrong tokens of four after one iteration, one after two, none after three; a flow that falls tenfold."""
    known = {
        "num_tokens": TOKENS + 1,
        "layer": 1,
        "initial": "zeros",
        "sample": 0,
        "dataset": "digits",
        "residual": 1.0,
    }
    wrong = [4, 2, 1, 0]
    ours = [
        known | {"checkpoint": "discrete-digits", "cell_id": "a", "iteration": t, "error_inf": float(n > 0),
                 "error_rms": (2 * n / (LEVELS * (TOKENS + 1))) ** 0.5}
        for t, n in enumerate(wrong)
    ]  # fmt: skip
    other = [
        known | {"checkpoint": "digits", "cell_id": "b", "iteration": t, "error_inf": 10.0**-t, "error_rms": 10.0**-t}
        for t in range(4)
    ]
    return pd.DataFrame(ours + other)


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "run", list(cells(decoders=("sequential", "ujd"), taus=(0.5,), batches=(1, 16))))
    runs = load([tmp_path / "run"])
    for table in runs.tables.values():
        if "checkpoint" in table:
            table["checkpoint"] = "discrete-digits"
    runs.tables["quality"]["deviation_max"] = 0.0
    runs.tables.update(drafts=drafts({"blank": 3, "unigram": 1, "greedy": 2}), convergence=convergence())
    return runs


def test_tokens_still_wrong_follow_from_the_distance_of_one_hot_tokens(runs):
    wrong = discrete.findings(runs).tables["wrong"].set_index("iteration")
    assert wrong["wrong"].to_dict() == pytest.approx({1: 0.5, 2: 0.25, 3: 0.0})
    assert wrong["exact"].to_dict() == {1: 0.0, 2: 0.0, 3: 1.0}


def test_the_best_guess_is_told_and_the_greedy_one_at_temperature_0_left_out(runs):
    runs.tables["drafts"].loc[lambda rows: (rows["guess"] == "greedy") & (rows["temperature"] == 0), "calls"] = 1
    found = discrete.findings(runs)
    assert (found.values["best"]["guess"], found.values["worst"]["guess"]) == ("unigram", "blank")
    answer, timed = found.claims
    assert "from 4 to 2 (from unigram) to 4 (from blank) at temperature 0 and 2" in answer.measured
    assert answer.agrees and not answer.timed
    assert timed.agrees and timed.timed and "at batch 1 and" in timed.measured


def test_a_continuous_layer_is_right_within_half_a_level(runs):
    found = discrete.findings(runs)
    assert found.values["to_level"] == 2  # a hundredth is the first below a sixteenth


def test_a_sample_that_deviates_is_no_answer(runs):
    runs.tables["quality"].loc[0, "deviation_max"] = 0.125
    assert not discrete.findings(runs).claims[0].agrees


def test_its_text_is_written(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.studies.render.load", lambda paths: runs)
    folder = discrete.__file__.rpartition("/")[0]
    render_study(type(tmp_path)(folder), "A title", "fast", [tmp_path / "run"], tmp_path / "new", tmp_path / "results")
    text = (tmp_path / "results" / "discrete.md").read_text(encoding="utf-8")
    assert "the best guess, unigram, takes 2 calls instead of 4" in text
