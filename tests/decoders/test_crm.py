"""GS-Jacobi's metrics: against their formulas, against measured iterations, and what is chosen from them."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from harness.decoders import build_decoder
from harness.decoders.calibration import LayerMetrics, calibration_of
from harness.decoders.gs_jacobi import STRATEGIES, automatic
from harness.errors import HarnessError
from harness.fitting import prepare
from harness.fitting.crm import DOMINANT, layer_metrics, metrics_of
from harness.flows import load_flow
from harness.flows.coupled import coupled_tarflow
from harness.flows.tap import Observer, tap
from harness.measure.probes.probe import build_probe
from harness.measure.run_probe import run_probe
from harness.progress import LineReporter

SHIPPED = ("digits", "cifar10", "afhq-cat")


def test_the_metrics_are_those_of_the_formulas():
    """Written out with numpy for one layer, from the definitions."""
    flow = coupled_tarflow(blocks=1)
    tokens = flow.sample_latents(5, torch.Generator().manual_seed(0))
    (found,) = layer_metrics(flow, tokens)
    layer, condition = flow.layers[0], flow.condition(5)

    def outputs(x):
        log_scale, shift = layer.affine(torch.from_numpy(x), None, 0, condition)
        zero = np.zeros((5, 1, flow.token_dim), np.float32)
        return [np.concatenate([zero, part[:, :-1].numpy()], axis=1) for part in (log_scale, shift)]

    def norm(matrix):
        return np.linalg.svd(matrix, compute_uv=False)[0]

    x = tokens.numpy()
    a, b = outputs(x)
    z = np.exp(-a) * (x - b)
    weight = layer.proj_out.weight.numpy()
    crm = norm((np.exp(-a) * x).mean(0)) * norm(weight[: flow.token_dim]) + norm(weight[flow.token_dim :])
    assert found.crm == pytest.approx(crm, rel=1e-4) and found.share == 1
    for name, guess in (("input", z), ("zeros", np.concatenate([x[:, :1], np.zeros_like(x[:, 1:])], axis=1))):
        a, b = outputs(guess)
        assert found.igm[name] == pytest.approx(norm((np.exp(a) * z + b - x).mean(0)), rel=1e-3)


@pytest.mark.parametrize("name", ["digits", *(pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED[1:])])
def test_stored_metrics_are_those_of_the_flow(name):
    """Slow for the larger flows: many exact samples are decoded. How they are computed is the same for all."""
    flow = load_flow(name)
    stored = calibration_of(flow).metrics
    assert [of.share for of in stored] == pytest.approx([of.share for of in metrics_of(flow)], rel=1e-3)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_metrics_predict_iterations_where_they_do(name):
    """IGM ranks the layers of every shipped flow as their iterations do. CRM finds the slowest of the digits' and the
    second slowest of the others', where layer 1, whose mean over samples is nearly nothing, escapes it; what it finds
    beside that may be quick."""
    flow = load_flow(name)
    metrics = calibration_of(flow).metrics
    latents = flow.sample_latents(4, torch.Generator().manual_seed(5))
    labels = torch.arange(4) if flow.num_classes else None
    traces = build_decoder("ujd", tau=0.01, initial="input").decode(flow, latents, labels).layers
    iterations = [trace.iterations for trace in traces]
    igm = [of.igm["input"] for of in metrics]
    assert spearmanr(igm, iterations).statistic > 0.3
    assert np.argmax(iterations) == 0
    tough = [of.layer for of in metrics if of.tough]
    assert len(tough) <= 2
    assert max(iterations[layer - 1] for layer in tough) in sorted(iterations)[-2:]


def test_dominant_layers_are_divided_as_published():
    """The published shares of CRM, in decoding order, give the published blocks."""
    shares = {
        "afhq": [42.60, 9.36, 10.27, 9.01, 7.94, 8.16, 6.28, 6.33],
        "imagenet128": [4.05, 56.57, 7.35, 7.74, 10.93, 2.47, 5.63, 5.22],
        "imagenet64": [4.44, 33.62, 1.33, 1.77, 3.38, 2.29, 2.42, 50.71],
    }
    for name, percent in shares.items():
        metrics = [
            LayerMetrics(i + 1, 7 - i, share, share / 100, share / 100 > DOMINANT / 8, {"input": 0.0, "zeros": 1.0})
            for i, share in enumerate(percent)
        ]
        assert automatic(metrics).blocks == STRATEGIES[name].blocks
    assert automatic(metrics).max_iterations == (10, 32, 10, 10, 10, 10, 10, 32)


class Watch(Observer):
    seen = 0

    def evaluated(self, layer, call):
        self.seen += 1


def test_auto_is_exact_at_tau_zero_and_measures_nothing(monkeypatch):
    monkeypatch.setattr("harness.fitting.calibrate.DENSE_SAMPLES", 128)
    flow = coupled_tarflow(num_classes=10)
    latents, labels, watch = flow.sample_latents(3, torch.Generator().manual_seed(0)), torch.arange(3), Watch()
    exact = build_decoder("sequential").decode(flow, latents, labels).tokens
    auto = build_decoder("gs-jacobi", strategy="auto", tau=0.0)
    prepare(auto, flow, 3)
    result = auto.decode(tap(flow, watch), latents, labels)
    torch.testing.assert_close(result.tokens, exact, rtol=1e-4, atol=1e-4)
    assert watch.seen == result.depth


def test_layers_that_do_not_show_their_weights_are_refused():
    pytest.importorskip("zuko")
    flow = load_flow("maf-breast-cancer")
    with pytest.raises(HarnessError, match="last linear map"):
        build_decoder("gs-jacobi", strategy="auto").decode(flow, flow.sample_latents(2))


@pytest.mark.parametrize("data", ["images", "samples"])
def test_the_probe_writes_a_row_per_layer(tmp_path, data):
    probe = build_probe("crm", data=data, samples=32, batch=4)
    rows = run_probe(probe, "digits", tmp_path / "run", LineReporter()).table("crm")
    assert list(rows.layer) == [1, 2, 3, 4, 5, 6]
    assert rows.crm_share.sum() == pytest.approx(1)
    assert (rows.iterations_zeros >= rows.iterations_input).all() and (rows.guess == "input").all()
