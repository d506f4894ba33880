"""The break conditions of the paper: found, told in the printed table and on the page, and not without cause."""

import io

import pandas as pd
import pytest
from rich.console import Console

from analysis.quality import break_conditions, warnings
from analysis.report import build
from analysis.summary import print_summary
from harness.runs.store import RunStore

L = 64
MATRIX = {"quality": {"max_deviation": 0.15, "max_fid_increase": 0.05}}


def cell(name, decoder="ujd", tau=0.5):
    return {
        "cell_id": name, "cell_key": name, "group_id": "g", "dataset": "digits", "checkpoint": "digits",
        "decoder": decoder, "label": decoder, "tau": None if decoder == "sequential" else tau, "options": "{}",
        "batch_size": 16, "seed": 0, "num_tokens": L, "num_layers": 2, "device": "cpu", "dtype": "float32",
        "threads": 2, "token_dim": 4, "checkpoint_digest": "d", "code_version": "v",
    }  # fmt: skip


def layer(name, number, iterations=5, converged=True, flags="", mode="jacobi", depth=None):
    return {
        "cell_id": name, "cell_key": name, "layer": number, "block": 2 - number, "mode": mode,
        "iterations": iterations, "converged": converged, "token_evaluations": 5.0 * L,
        "depth": iterations if depth is None else depth, "wall_s": 0.1, "final_residual": 0.1, "flags": flags,
    }  # fmt: skip


def quality(name, fid, features="f", samples=512, images=None, margin=0.005):
    return {
        "fid_rise_low": fid / 10.0 - 1 - margin, "fid_rise_high": fid / 10.0 - 1 + margin,
        "cell_id": name, "cell_key": name, "fid": fid, "fid_features": features, "num_samples": samples,
        "reference_digest": images, "deviation_rmse": 0.01, "nonfinite_samples": 0, "status": "ok",
    }  # fmt: skip


def timing(row):
    kept = {key: value for key, value in row.items() if key not in ("token_dim", "checkpoint_digest", "code_version")}
    return [kept | {"session": "s", "round": n, "position": 0, "wall_s": 1.0, "status": "ok"} for n in range(5)]


CASES = {
    "iterations": ([layer("a", 1), layer("a", 2, iterations=L + 1)], 10.0, "layer 2: 65 of 64"),
    # Given up at L and decoded again sequentially: the row tells the steps of the second attempt.
    "given up": (
        [layer("a", 1, iterations=L - 1, depth=2 * L - 1, flags="cap,redecoded", mode="sequential"), layer("a", 2)],
        10.0,
        "layer 1: 64 of 64",
    ),
    "fid": ([layer("a", 1), layer("a", 2)], 10.6, "10.60, allowed 10.50"),
    "residuals": ([layer("a", 1, flags="growing"), layer("a", 2, flags="growing")], 10.0, "layers 1, 2"),
}
CONDITION = {"given up": "iterations"}


def tables(layers, fid):
    cells = [cell("s", "sequential"), cell("a")]
    exact = [layer("s", n, iterations=L - 1, mode="sequential") for n in (1, 2)]
    return cells, [*exact, *layers], [quality("s", 10.0), quality("a", fid)]


def found_in(cells, layers, measured):
    return break_conditions(pd.DataFrame(cells), pd.DataFrame(layers), pd.DataFrame(measured))


@pytest.mark.parametrize("name", CASES)
def test_each_condition_is_found_and_told(name):
    layers, fid, told = CASES[name]
    cells, *rest = tables(layers, fid)
    found = found_in(cells, *rest)
    assert set(found["cell_id"]) == {"a"}
    assert set(found["condition"]) == {CONDITION.get(name, name)}
    (sentence,) = warnings(found, pd.DataFrame(cells))
    assert f"ujd tau 0.5 ({told})" in sentence


def test_nothing_is_found_within_the_conditions():
    layers = [layer("a", 1, iterations=L), layer("a", 2, flags="redecoded,non-finite", iterations=L - 1, depth=L + 9)]
    assert found_in(*tables(layers, 10.5)).empty


def test_a_fid_that_may_be_within_the_limit_or_not_breaks_nothing():
    cells, layers, measured = tables([layer("a", 1)], 10.6)
    assert list(found_in(cells, layers, measured)["condition"]) == ["fid"]
    assert found_in(cells, layers, [measured[0], quality("a", 10.6, margin=0.02)]).empty
    assert found_in(cells, layers, [quality("s", 10.0, samples=255), quality("a", 10.6, samples=255)]).empty, "too few"


def test_fids_of_other_features_groups_images_or_numbers_of_samples_are_not_compared():
    cells, layers, measured = tables([layer("a", 1)], 99.0)
    assert found_in(cells, layers, [measured[0], quality("a", 99.0, "other")]).empty
    assert found_in(cells, layers, [measured[0], quality("a", 99.0, samples=64)]).empty
    assert found_in(cells, layers, [measured[0], quality("a", 99.0, images="other")]).empty
    assert found_in([cells[0], cells[1] | {"group_id": "other"}], layers, measured).empty


def test_an_empty_run_breaks_nothing():
    from harness.runs.tables import TABLES

    assert break_conditions(TABLES["cells"].empty(), TABLES["layers"].empty(), TABLES["quality"].empty()).empty


@pytest.fixture
def run(tmp_path):
    """A run that breaks all three."""
    cells, layers, measured = tables([layer("a", 1, flags="growing"), layer("a", 2, iterations=L + 6)], 12.0)
    with RunStore.create(tmp_path / "run", {"matrix": MATRIX}) as store:
        store.append("cells", cells)
        store.append("timings", [row for one in cells for row in timing(one)])
        store.append("layers", layers)
        store.append("quality", measured)
    return store.run


TOLD = (
    "A layer took more iterations than it has tokens: ujd tau 0.5 (layer 2: 70 of 64).",
    "FID is more than 5% above sequential's, with 95 % confidence: ujd tau 0.5 (12.00, allowed 10.50).",
    "A residual grew from one iteration to the next: ujd tau 0.5 (layer 1).",
)


def test_the_printed_table_warns(run):
    console = Console(file=io.StringIO(), width=200)
    print_summary(run, console)
    printed = console.file.getvalue()
    for sentence in TOLD:
        assert f"Warning: {sentence}" in printed


def test_the_page_warns(run, tmp_path):
    page = build([run.path], tmp_path / "out").read_text(encoding="utf-8").replace("&#39;", "'")
    for sentence in TOLD:
        assert f"Warning, digits, batch 16: {sentence}" in page
