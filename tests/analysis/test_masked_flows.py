"""The study of masked flows: its numbers from tables made by hand."""

import itertools

import pandas as pd
import pytest

from analysis.published import published
from analysis.studies.claims import claims
from analysis.studies.masked_flows import findings as masked_flows


def observed(**differences):
    rows = [
        {"decoder": decoder, "observable": name, "difference": difference, "expected": -0.8, "independent": 0.0}
        for decoder, found in differences.items()
        for name, difference in found.items()
    ]
    return pd.DataFrame(rows).assign(decoder=lambda frame: frame["decoder"].str.replace("_", " tau="))


def test_independent_spins_by_all_their_states():
    total = [abs(sum(spins)) / 6 for spins in itertools.product((-1, 1), repeat=6)]
    assert masked_flows.independent(6) == pytest.approx(sum(total) / len(total))


def test_the_papers_magnetisation_is_that_of_independent_spins_on_a_lattice_of_16():
    """Within three standard errors of 100,000 samples, which no other even side is."""
    rows = published()
    reported = rows.loc[(rows["key"] == "e3-ising") & (rows["quantity"] == "abs_magnetisation"), "value"]
    for side in (14, 16, 18):
        mean = masked_flows.independent(side**2)
        error = (1 / side**2 - mean**2) ** 0.5 / 100_000**0.5
        assert ((reported - mean).abs() <= 3 * error).all() == (side == 16)
    assert masked_flows._lattice(rows[rows["key"] == "e3-ising"])["side"] == 16


def test_only_ujd_at_the_papers_tau_decides_what_is_kept():
    frame = observed(**{"ujd_0.5": {"energy": 0.02}, "ujd_2.0": {"energy": 0.4}, "sequential": {"energy": 0.0}})
    assert masked_flows.largest(frame) == pytest.approx({"energy": 0.025})


def test_each_flow_answers_a_claim_beside_an_experiment_of_the_paper():
    assert set(masked_flows.CLAIMS.values()) <= set(claims())
    keys = set(published()["key"])
    assert set(masked_flows.PAPER.values()) <= keys
