"""What a flow is worth beside what decoding it costs."""

import pytest

from harness.decoders import build_decoder
from harness.decoders.exact import ExactBatch
from harness.flows import load_flow
from harness.flows.checkpoints import checkpoint_path
from harness.flows.latents import cycling_labels, indexed_latents
from harness.measure.probes.price import _deviation, fewest
from harness.measure.probes.probe import build_probe
from harness.measure.run_probe import run_probe
from harness.metrics.likelihood import bits_per_dim
from harness.progress import SILENT
from harness.training.config import read_config
from harness.training.likelihood import Splits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    probe = build_probe("price", batch=4, draws=2, images=30)
    return run_probe(probe, "digits", tmp_path_factory.mktemp("price") / "run", SILENT, threads=1)


def test_bits_are_those_that_training_tells_and_draws_differ(run):
    rows = run.table("likelihoods").sort_values("draw")
    _, config = read_config("digits", held_out=30)
    splits = Splits.load(config, "digits", None, None, False)
    expected = bits_per_dim(load_flow("digits"), splits.held_out, splits.levels, config, draws=1)
    assert rows["bits_per_dim"].tolist()[0] == pytest.approx(expected, rel=1e-6)  # by the seed 0, as the training's
    assert rows["bits_per_dim"].nunique() == 2 and set(rows["num_samples"]) == {30}


def test_iterations_are_those_of_ujd(run):
    rows = run.table("jacobi_iterations")
    batch = ExactBatch(*_drawn(4))
    for guess in ("input", "zeros"):
        traces = batch.result(build_decoder("ujd", tau=0.01, initial=guess)).layers
        mine = rows[rows["guess"] == guess].sort_values("layer")["iterations"].tolist()
        assert mine == [trace.iterations for trace in traces]


def test_a_budget_is_kept_by_no_fewer_passes_than_a_looser_one(run):
    rows = run.table("budgets").sort_values("allowed", ascending=False)
    assert set(rows["budget"]) == {"sejd", "0.01"}
    assert (rows["deviation_rmse"] <= rows["allowed"]).all()
    assert rows["forward_passes"].is_monotonic_increasing
    batch = ExactBatch(*_drawn(4))
    for row in rows.to_dict("records"):
        iterations = tuple(map(int, row["iterations"].split("+")))
        result = batch.result(build_decoder("fitted", iterations=iterations))
        assert (result.fpe, _deviation(batch, result)) == pytest.approx((row["forward_passes"], row["deviation_rmse"]))


def test_a_deviation_that_is_never_reached_ends():
    batch = ExactBatch(*_drawn(2))
    start = (15, 16, 16, 16, 16, 16)
    iterations, result = fewest(batch, -1.0, start)
    assert sum(iterations) == 96 and _deviation(batch, result) > 0


def _drawn(count):
    flow = load_flow(checkpoint_path("digits"))
    return flow, indexed_latents(flow, 0, range(count)), cycling_labels(flow, range(count))
