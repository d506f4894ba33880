"""Gauss-Seidel-Jacobi and frontier decoding: their limiting cases, their costs, their guarantees."""

import pytest
import torch

from harness.decoders import build_decoder
from harness.decoders.gs_jacobi import STRATEGIES
from harness.decoders.windows import Blocks, Frontier, Slide
from harness.errors import HarnessError
from harness.flows.coupled import coupled_tarflow

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def flow():
    return coupled_tarflow()


@pytest.fixture(scope="module")
def latents(flow):
    return flow.sample_latents(4, torch.Generator().manual_seed(3))


def same(flow, latents, one, other):
    """The same samples at the same cost, layer by layer."""
    first, second = one.decode(flow, latents), other.decode(flow, latents)
    assert torch.allclose(first.tokens, second.tokens, atol=TOLERANCE)
    assert [t.token_evaluations for t in first.layers] == [t.token_evaluations for t in second.layers]
    assert [t.depth for t in first.layers] == [t.depth for t in second.layers]


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 1, "advance": 1}, {"window": 1, "advance": "window"}])
def test_a_window_of_one_token_is_sequential(flow, latents, options):
    same(flow, latents, build_decoder("frontier", **options), build_decoder("sequential"))


@pytest.mark.parametrize("blocks", [0, 16])
def test_blocks_of_one_token_are_sequential(flow, latents, blocks):
    same(flow, latents, build_decoder("gs-jacobi", blocks=blocks), build_decoder("sequential"))


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("tau", [0.0, 0.05, 0.5])
def test_a_full_window_without_freezing_is_ujd(flow, latents, scope, tau):
    ujd = build_decoder("ujd", tau=tau, scope=scope)
    same(flow, latents, build_decoder("frontier", window=None, advance="window", tau=tau, scope=scope), ujd)
    same(flow, latents, build_decoder("gs-jacobi", blocks=1, tau=tau, scope=scope), ujd)


@pytest.mark.parametrize("window", [2, 5, 16, None])
def test_freezing_evaluates_less_than_a_triangle(flow, latents, window):
    exact = build_decoder("sequential").decode(flow, latents).tokens
    result = build_decoder("frontier", window=window, tau=0.0).decode(flow, latents)
    assert torch.allclose(result.tokens, exact, atol=TOLERANCE)
    length = flow.num_tokens
    for trace in result.layers:
        assert trace.converged
        assert trace.depth <= length - 1
        assert trace.token_evaluations <= length * (length - 1) / 2


def test_every_frozen_token_was_calm_or_follows_calm_ones():
    window, settled = Frontier(width=8, tau=0.1).next((3, 11), 8, [0.0, 0.05, 0.2, 0.0, 0, 0, 0, 0], 1)
    assert (window, settled) == ((6, 14), True)
    assert Frontier(width=8, tau=0.1).next((3, 11), 8, [float("nan")] * 8, 1) == ((4, 12), True)
    assert Frontier(width=8, tau=0.1).next((3, 11), 4, [0.0] * 4, 1) == ((7, 15), True)


def test_a_block_is_left_when_calm_or_exact_or_at_its_cap():
    blocks = Blocks(width=4, tau=0.1, cap=2)
    assert blocks.first() == (0, 3)
    assert blocks.next((3, 7), 4, [0.2], 1) == ((3, 7), True)
    assert blocks.next((3, 7), 4, [0.05], 1) == ((7, 11), True)
    assert blocks.next((3, 7), 4, [0.2], 2) == ((7, 11), False)
    assert Blocks(width=4, tau=0.1).next((3, 7), 4, [0.2], 4) == ((7, 11), True)


def test_a_slide_evaluates_every_token_as_often():
    length, window, stride = 64, 16, 4
    counts = torch.zeros(length - 1)
    slide, place = Slide(window, stride, tau=0.5), Slide(window, stride, tau=0.5).first()
    calls = 0
    while place[0] < length - 1:
        counts[place[0] : place[1]] += 1
        place, _ = slide.next(place, 0, [], 1)
        calls += 1
    assert counts.eq(window // stride).all()
    assert calls == 16 + 4 - 1


def test_a_slide_says_whether_what_it_left_behind_was_calm(flow, latents):
    exact = build_decoder("sequential").decode(flow, latents).tokens
    rough = build_decoder("frontier", window=4, advance=4, tau=1e-3, fallback="leave").decode(flow, latents)
    assert rough.converged and all((trace.mode, trace.state) == ("slide", "done") for trace in rough.layers)
    redone = build_decoder("frontier", window=4, advance=4, tau=1e-3).decode(flow, latents)
    assert torch.allclose(redone.tokens, exact, atol=TOLERANCE)
    assert all("redecoded" in trace.flags for trace in redone.layers)


def test_a_cap_on_the_calls_leaves_an_exact_prefix(flow, latents):
    exact = build_decoder("sequential").decode(flow, latents)
    decoder = build_decoder("frontier", window=None, tau=0.0, max_iterations=3, fallback="leave")
    result = decoder.decode(flow, latents)
    assert not result.converged
    first = flow.layers[0]
    condition = flow.condition(len(latents))
    inputs = first.arrange(flow.scale_latents(latents))
    tokens, trace = decoder.solve(first, inputs, condition)
    wanted, _ = build_decoder("sequential").solve(first, inputs, condition)
    assert trace.depth == 3
    assert torch.allclose(tokens[:, :4], wanted[:, :4], atol=TOLERANCE)
    assert result.tokens.shape == exact.tokens.shape


@pytest.mark.parametrize("decoder", ["frontier", "gs-jacobi"])
def test_samples_with_their_own_windows_do_not_see_each_other(flow, latents, decoder):
    build = lambda: build_decoder(decoder, scope="sample", tau=0.3)  # noqa: E731
    together = build().decode(flow, latents).tokens
    for i in range(len(latents)):
        others = latents.flip(0) * 3
        others[0] = latents[i]
        assert torch.allclose(build().decode(flow, others).tokens[0], together[i], atol=TOLERANCE)


def test_published_strategies_have_an_entry_per_layer():
    for strategy in STRATEGIES.values():
        assert len(strategy.blocks) == len(strategy.max_iterations) == len(strategy.initial) == 8
    afhq = build_decoder("gs-jacobi", strategy="afhq", norm="frobenius", tau=1e-8, clamp=3.0, fallback="non-finite")
    flow = coupled_tarflow(blocks=8)
    traces = afhq.decode(flow, flow.sample_latents(2, torch.Generator().manual_seed(0))).layers
    assert [trace.mode for trace in traces] == ["gs-jacobi", *["jacobi"] * 7]
    assert traces[0].depth <= 16
    assert all(trace.depth <= 10 for trace in traces[1:])


def test_lists_hold_layer_by_layer(flow, latents):
    decoder = build_decoder("gs-jacobi", blocks=[0, 1, 4], max_iterations=[1, 2, 3], tau=0.0, fallback="leave")
    traces = decoder.decode(flow, latents).layers
    assert [(trace.mode, trace.depth) for trace in traces] == [("sequential", 15), ("jacobi", 2), ("gs-jacobi", 12)]


def test_a_clamp_bounds_the_iterates(flow, latents):
    result = build_decoder("gs-jacobi", blocks=2, clamp=0.5, fallback="leave").decode(flow, latents)
    first = flow.scale_latents(latents)[:, -1]  # layer 3 reads in raster order, so its token 0 is never updated
    assert float(result.tokens[:, 1:].abs().max()) <= 0.5
    assert first.abs().max() > 0.5


@pytest.mark.parametrize(
    ("decoder", "options", "word"),
    [
        ("gs-jacobi", {"strategy": "afqh"}, "afhq"),
        ("gs-jacobi", {"blocks": -1}, "blocks"),
        ("gs-jacobi", {"blocks": [1, 2.5]}, "blocks"),
        ("gs-jacobi", {"max_iterations": [3, 0]}, "max_iterations"),
        ("gs-jacobi", {"initial": ["zeros", "input", "nothing"]}, "unknown initial 'nothing'"),
        ("gs-jacobi", {"clamp": 0}, "clamp"),
        ("frontier", {"window": 0}, "window"),
        ("frontier", {"advance": "sometimes"}, "advance"),
        ("frontier", {"window": 16, "advance": 5}, "divisor"),
    ],
)
def test_options_out_of_range_are_refused(decoder, options, word):
    with pytest.raises(HarnessError, match=word):
        build_decoder(decoder, **options)


def test_a_list_of_the_wrong_length_is_refused(flow, latents):
    with pytest.raises(HarnessError, match="2 entries, but the flow has 3 layers"):
        build_decoder("gs-jacobi", blocks=[1, 2]).decode(flow, latents)
    with pytest.raises(HarnessError, match="'afhq' has 8 entries"):
        build_decoder("gs-jacobi", strategy="afhq").decode(flow, latents)


def test_a_residual_that_grows_is_flagged_and_rounding_is_not():
    flow = coupled_tarflow(seed=2)
    latents = flow.sample_latents(4, torch.Generator().manual_seed(1))
    decoder = build_decoder("ujd", tau=0.0, initial="input")
    wild, calm = (decoder.decode(flow, scale * latents).layers[0] for scale in (16.0, 1.0))
    assert wild.residuals[1] > 1.1 * wild.residuals[0] and wild.flags == ("growing",)
    assert wild.converged and calm.converged and calm.flags == ()
