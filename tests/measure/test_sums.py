"""Samples measured in runs and merged give what they give when measured at once."""

import numpy as np
import pytest
import torch

from harness.flows import load_flow
from harness.measure import expand as plan
from harness.measure.matrix import Matrix, Quality
from harness.measure.tasks.quality import QualityTask
from harness.measure.tasks.sums import Sums, exact_samples, measure_samples
from harness.measure.units import Bench, Unit
from harness.metrics.features import shipped_network


@pytest.fixture(scope="module")
def cell(tiny_checkpoint):
    raw = {
        "name": "m",
        "device": "cpu",
        "datasets": [{"name": "digits", "checkpoint": str(tiny_checkpoint)}],
        "decoders": [{"name": "ujd"}],
        "grid": {"batch_sizes": [4], "tau": [1.0]},
    }
    (cell,) = plan.expand(Matrix.model_validate(raw))
    return cell


def test_runs_merge_into_the_whole(cell):
    flow, decoder, extractor = load_flow(cell.checkpoint_path), cell.build(), shipped_network("digits")
    whole = range(70)
    exact = exact_samples(cell, flow, whole)

    def measure(indices):
        return measure_samples(cell, flow, decoder, indices, exact[indices.start : indices.stop], extractor)

    at_once, merged = measure(whole), Sums()
    for run in (range(12), range(12, 68), range(68, 70)):
        merged.merge(measure(run))
    assert merged.deviation.result() == pytest.approx(at_once.deviation.result(), rel=1e-12)
    assert merged.deviation.result()["deviation_rmse"] > 1e-4
    np.testing.assert_array_equal(np.concatenate(merged.features), np.concatenate(at_once.features))
    assert torch.equal(torch.cat(merged.shown), torch.cat(at_once.shown)) and len(torch.cat(merged.shown)) == 64


def test_exact_samples_do_not_depend_on_the_run(cell):
    flow = load_flow(cell.checkpoint_path)
    whole = exact_samples(cell, flow, range(70))
    torch.testing.assert_close(exact_samples(cell, flow, range(5, 9)), whole[5:9])


def broken(*arguments, **options):
    raise RuntimeError("operator torchvision::nms\ndoes not exist")


@pytest.mark.parametrize(
    ("what", "columns", "said"),
    [
        ("sums.features_of", ["fid", "kid"], "no FID: RuntimeError: operator torchvision::nms does not exist"),
        ("quality.distances", ["fid", "kid"], "no FID: RuntimeError: operator"),
        ("quality.feature_extractor", ["fid", "kid"], "no comparison with real images: RuntimeError: operator"),
        ("quality.load_dataset", ["reconstruction_mse"], "features of the test split that are shipped, since RuntimeE"),
        ("quality.reconstruction", ["reconstruction_mse"], "no reconstruction: RuntimeError: operator"),
    ],
)
def test_an_optional_measure_that_breaks_costs_its_own_columns(cell, monkeypatch, what, columns, said):
    unit, task = Unit("all", (cell,)), QualityTask(Quality(num_samples=8))
    (whole,) = task.measure(unit, Bench("one"))["quality"]
    monkeypatch.setattr(f"harness.measure.tasks.{what}", broken)
    (row,) = task.measure(unit, Bench("two"))["quality"]
    assert said in row["error"] and row["status"] == "ok"
    lost = {name for name, value in whole.items() if value is not None and row.get(name) is None}
    assert set(columns) <= lost
    assert row["deviation_rmse"] == whole["deviation_rmse"] and row["num_samples"] == 8
    assert "fid" in columns or row["fid"] is not None


@pytest.mark.parametrize("error", [TypeError, ZeroDivisionError, RuntimeError])
def test_a_perceptual_score_that_breaks_costs_its_own_column(cell, monkeypatch, error):
    def score(images):
        raise error("it breaks")

    monkeypatch.setattr("harness.metrics.perceptual._metric", lambda name, *more: score)
    (row,) = QualityTask(Quality(num_samples=8)).measure(Unit("all", (cell,)), Bench("one"))["quality"]
    assert (row["status"], row["error"], row["clip_iqa"]) == ("ok", None, None)
    assert row["perceptual_error"] == "; ".join(
        f"{name}: {error.__name__}: it breaks" for name in ("clip_iqa", "brisque")
    )
    assert row["fid"] > 0
