"""The recorded errors against the mathematics: what an iterate must be after a number of calls."""

import pytest
import torch

from harness.decoders import build_decoder
from harness.decoders.sequential import solve_sequential
from harness.flows import load_flow
from harness.flows.latents import indexed_latents
from harness.flows.tap import tap
from harness.metrics.iterate_errors import ErrorRecorder

BATCH = 5


@pytest.fixture
def flow(tiny_checkpoint):
    return load_flow(tiny_checkpoint)


def record(flow, decoder, labels=None):
    latents = indexed_latents(flow, 0, range(BATCH))
    recorder = ErrorRecorder(flow.condition(BATCH, labels))
    result = decoder.decode(tap(flow, recorder), latents, labels)
    return recorder.rows(result), result, latents


def errors_by_hand(flow, iterations):
    """Layer 1's Jacobi iterates from its input, by the formula."""
    layer = flow.layers[0]
    z = layer.arrange(flow.scale_latents(indexed_latents(flow, 0, range(BATCH))))
    exact, _ = solve_sequential(layer, z, flow.condition(BATCH))
    x, found = z.clone(), []
    for _ in range(iterations):
        log_scale, shift = layer.affine(x[:, :-1], None, 0, flow.condition(BATCH))
        x = torch.cat([z[:, :1], z[:, 1:] * log_scale.exp() + shift], dim=1)
        found.append(x - exact)
    return found


def test_jacobi_errors_are_those_of_the_iterates(flow):
    rows, result, _ = record(flow, build_decoder("ujd", initial="input", tau=1e-6))
    layer1 = [row for row in rows if row["layer"] == 1]
    by_hand = errors_by_hand(flow, len(layer1))
    assert len(layer1) == result.layers[0].iterations > 3
    for row, difference in zip(layer1, by_hand, strict=True):
        per_sample = difference.square().mean(dim=(1, 2)).sqrt()
        assert row["error_inf"] == pytest.approx(float(difference.abs().max()), abs=1e-6)
        assert row["error_rms"] == pytest.approx(float(difference.square().mean().sqrt()), abs=1e-6)
        assert row["error_rms_p50"] == pytest.approx(float(per_sample.median()), abs=1e-6)
    assert [row["residual"] for row in layer1] == result.layers[0].residuals
    assert layer1[-1]["error_inf"] < 1e-5


def test_sequential_errors_are_those_of_the_tokens_not_yet_decoded(flow):
    rows, _, latents = record(flow, build_decoder("sequential"))
    layer = flow.layers[0]
    z = layer.arrange(flow.scale_latents(latents))
    exact, _ = solve_sequential(layer, z, flow.condition(BATCH))
    layer1 = [row for row in rows if row["layer"] == 1]
    assert len(layer1) == flow.num_tokens - 1
    for call, row in enumerate(layer1):
        state = torch.cat([exact[:, : call + 2], z[:, call + 2 :]], dim=1)
        assert row["error_rms"] == pytest.approx(float((state - exact).square().mean().sqrt()), abs=1e-6)
        assert row["residual"] is None
    assert layer1[-1]["error_inf"] < 1e-6


def test_samples_that_left_the_batch_keep_their_error(flow):
    """With scope "sample" every row is placed; the last error of each sample is that of its own last iterate."""
    decoder = build_decoder("ujd", scope="sample", tau=0.05)
    rows, result, _ = record(flow, decoder)
    layer1 = [row for row in rows if row["layer"] == 1]
    assert len(layer1) == result.layers[0].depth
    exact = build_decoder("sequential").decode(flow, indexed_latents(flow, 0, range(BATCH)))
    assert result.layers[0].token_evaluations < result.layers[0].iterations * (flow.num_tokens - 1)  # some did leave
    last = [row for row in rows if row["layer"] == flow.num_layers][-1]
    assert last["error_inf"] < 0.2 and (result.tokens - exact.tokens).abs().max() < 0.5
    assert layer1[-1]["error_inf"] < layer1[0]["error_inf"]


def test_a_recorded_decode_gives_the_same_samples(flow):
    decoder = build_decoder("sejd", tau=0.1)
    labels = torch.arange(BATCH)
    _, recorded, latents = record(flow, decoder, labels)
    assert torch.equal(recorded.tokens, decoder.decode(flow, latents, labels).tokens)
