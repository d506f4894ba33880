"""Samples measured in runs and merged give what they give when measured at once."""

import numpy as np
import pytest
import torch

from harness.flows import load_flow
from harness.measure import expand as plan
from harness.measure.matrix import Matrix
from harness.measure.tasks.sums import Sums, exact_samples, measure_samples
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
