"""Replayed calls: that what they read and write is kept and brought up to date; the capture itself: `tests/gpu`."""

import pytest
import torch
from replays import Replays

from harness.decoders import build_decoder
from harness.decoders.micro_batches import LiveBytes
from harness.decoders.solver import solve_sequential
from harness.errors import HarnessError
from harness.flows import load_flow
from harness.flows.coupled import coupled_tarflow
from harness.flows.graphs import KINDS, PARTS, Graphs, covering, graphed, graphs_of
from harness.flows.precision import products, to_dtype
from harness.flows.protocols import Guidance
from harness.flows.synthetic import synthetic_config
from harness.flows.tarflow import TarFlow


@pytest.fixture
def flow():
    return coupled_tarflow(num_classes=10)


def captured(flow):
    """The layers of a flow, their calls captured by a stand-in; and that."""
    flow.fits[Graphs] = Graphs(flow.device, capture := Replays())
    return graphed(flow), capture


def solve(layer, decoder, inputs, condition):
    if decoder == "sequential":
        return solve_sequential(layer, inputs, condition)
    return build_decoder(decoder, tau=1e-3).solve(layer, inputs, condition)


@pytest.mark.parametrize("decoder", ["sequential", "ujd", "frontier", "gs-jacobi"])
@pytest.mark.parametrize("guidance", [None, Guidance(0.5, annealed=True)], ids=["plain", "guided"])
def test_replayed_calls_follow_new_tokens_and_new_labels(flow, decoder, guidance):
    layers, capture = captured(flow)
    with torch.inference_mode():
        for seed, labels in ((0, [0, 1, 2]), (1, [5, -1, 7]), (2, [0, 1, 2])):
            condition = flow.condition(3, torch.tensor(labels), guidance)
            inputs = flow.sample_latents(3, torch.Generator().manual_seed(seed))
            for replayed, layer in zip(layers, flow.layers, strict=True):
                tokens, trace = solve(replayed, decoder, inputs, condition)
                wanted, expected = solve(layer, decoder, inputs, condition)
                torch.testing.assert_close(tokens, wanted, rtol=1e-4, atol=1e-5)
                assert (trace.iterations, trace.token_evaluations) == (expected.iterations, expected.token_evaluations)
    assert capture.replayed > capture.captured > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ujd", {"scope": "sample"}),
        ("frontier", {"window": None}),
        ("frontier", {"window": 6, "advance": 3}),
        ("frontier", {"window": 7, "scope": "sample"}),
        ("gs-jacobi", {"blocks": 5}),
        ("sejd", {"network_dtype": "bfloat16"}),
        ("ujd", {"max_iterations": 1}),
    ],
)
def test_every_decode_is_the_same_with_captured_calls(flow, monkeypatch, name, options):
    _, capture = captured(flow)
    latents, labels = flow.sample_latents(3, torch.Generator().manual_seed(0)), torch.tensor([3, 1, 4])
    decoder = build_decoder(name, **options)
    plain = decoder.decode(flow, latents, labels)
    assert not capture.captured
    monkeypatch.setattr("harness.decoders.decoder.captures", lambda flow: True)
    for _ in range(2):
        found = decoder.decode(flow, latents, labels)
        near = 5e-2 if "network_dtype" in options else 1e-4
        torch.testing.assert_close(found.tokens, plain.tokens, rtol=near, atol=near)
    assert capture.captured
    counted = capture.replayed
    build_decoder(name, **options, cuda_graphs=False).decode(flow, latents, labels)
    build_decoder(name, **options, max_memory="1GB").decode(flow, latents, labels)
    assert capture.replayed == counted


def test_a_decode_that_overflows_leaves_nothing_behind(flow):
    """What a window does not see is weighed by 0 in a captured call, and 0 times NaN is NaN."""
    (layer, *_), _ = captured(flow)
    condition, latents = flow.condition(2), flow.sample_latents(2, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert not solve_sequential(layer, torch.full_like(latents, torch.nan), condition)[1].converged
        wanted = solve_sequential(flow.layers[0], latents, condition)[0]
        torch.testing.assert_close(solve_sequential(layer, latents, condition)[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_window_on_a_prefix_is_replayed_wherever_it_is(flow):
    (layer, *_), capture = captured(flow)
    condition, tokens = flow.condition(2), flow.sample_latents(2)
    last = flow.num_tokens - 1
    with torch.no_grad():  # not only in inference mode
        cache, plain = layer.new_cache(2, condition), flow.layers[0].new_cache(2, condition)
        for start, end in ((0, 4), (4, 9), (9, 10), (10, last)):
            found = layer.affine(tokens[:, start:end], cache, start, condition)
            wanted = flow.layers[0].affine(tokens[:, start:end], plain, start, condition)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_was_returned_is_the_callers_own(flow):
    (layer, *_), _ = captured(flow)
    condition, tokens = flow.condition(2), flow.sample_latents(2)
    call = (tokens[:, :-1], None, 0, condition)
    with torch.inference_mode():
        first = [*layer.affine(*call), *layer.explain(tokens, *call)]
        before = [part.clone() for part in first]
        known = flow.layers[0].explain(tokens, *call)
        torch.testing.assert_close(tuple(first[2:]), tuple(known), rtol=1e-4, atol=1e-5)
        layer.affine(tokens[:, :-1] + 1, None, 0, condition)
        layer.explain(tokens + 1, tokens[:, :-1] + 1, None, 0, condition)
    assert all(map(torch.equal, first, before))


def test_layers_share_one_cache_and_the_older_solve_is_refused(flow):
    (first, second, *_), _ = captured(flow)
    condition, tokens = flow.condition(2), flow.sample_latents(2)
    with torch.inference_mode():
        older, newer = first.new_cache(2, condition), second.new_cache(2, condition)
        assert older.data.data_ptr() == newer.data.data_ptr()
        with pytest.raises(ValueError, match="another solve"):
            first.affine(tokens[:, :1], older, 0, condition)


def test_few_kinds_of_batch_are_kept(flow):
    (layer, *_), capture = captured(flow)
    with torch.inference_mode():
        for batch in (1, 2, 1, 2):
            solve_sequential(layer, flow.sample_latents(batch), flow.condition(batch))
        counted = capture.captured
        assert counted == 2 * PARTS
        for batch in range(3, 3 + KINDS):
            solve_sequential(layer, flow.sample_latents(batch), flow.condition(batch))
        assert len(graphs_of(flow).kinds) == KINDS
        solve_sequential(layer, flow.sample_latents(1), flow.condition(1))  # had to go
    assert capture.captured == counted + (KINDS + 1) * PARTS


@pytest.mark.parametrize(("name", "batch", "most"), [("2-256-6-6@32", 256, 2e9), ("8-768-8-8@256", 4, 1e9)])
def test_graphs_are_few_and_their_memory_is_bounded(name, batch, most):
    """The shapes of the papers, in bfloat16, on a device that only knows sizes, and so no fused attention."""
    with torch.device("meta"):
        flow = to_dtype(TarFlow(synthetic_config(f"random:{name}")), "meta", torch.bfloat16)
    length, peaks = flow.num_tokens, []

    def capture(call):
        with LiveBytes() as live:
            outputs = call()
        peaks.append(live.peak)
        return lambda: None, outputs

    flow.fits[Graphs] = graphs = Graphs(flow.device, capture)
    condition, tokens = flow.condition(batch), torch.empty(batch, length, flow.token_dim, device="meta")
    steps = {covering(1, start, length): (start, start + 1) for start in range(length - 1)}
    assert len(steps) == PARTS  # of sequential decoding
    ends = [(start, min(start + 32, length - 1)) for start in range(length - 1)]  # a window of 32 wherever it may be
    windows = {covering(end - start, start, length): (start, end) for start, end in ends}
    assert len(windows) < 2 * PARTS
    with torch.no_grad():
        for layer in graphed(flow)[:2]:
            cache = layer.new_cache(batch, condition)
            for start, end in [*steps.values(), *windows.values()]:
                layer.update(tokens, tokens[:, start:end], cache, start, condition)
            layer.update(tokens, tokens[:, :-1], None, 0, condition)
    assert len(peaks) == 2 * len({*steps, *windows}) + 2
    (kind,) = graphs.kinds.values()
    assert kind.cache.nbytes == 2 * 2 * batch * length * flow.config.channels * flow.config.layers_per_block
    outputs = sum(part.nbytes for _, parts in kind.graphs.values() for part in parts)
    held = sum(buffer.nbytes for buffer in kind.buffers.values()) + flow.num_layers / 2 * outputs
    assert held + max(peaks) < most


@pytest.mark.parametrize("name", ["ujd", "frontier", "gs-jacobi"])
def test_an_iteration_that_may_be_the_last_waits_for_the_device_once(flow, monkeypatch, name):
    (layer, *_), capture = captured(flow)
    condition, inputs, waits = flow.condition(2), flow.sample_latents(2, torch.Generator().manual_seed(0)), []
    decoder = build_decoder(name, tau=1e-3)
    for method in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, method, _counted(getattr(torch.Tensor, method), waits))
    with torch.inference_mode():
        _, trace = decoder.solve(layer, inputs, condition)
    assert len(waits) == trace.iterations > 2 and capture.replayed == trace.iterations


def _counted(method, waits):
    def counting(*arguments):
        waits.append(method)
        return method(*arguments)

    return counting


def test_a_graph_repeats_its_products_as_they_were(flow):
    """One captured at full precision is not replayed for a decode in TF32."""
    (layer, *_), capture = captured(flow)
    tokens, condition = flow.sample_latents(2)[:, :-1], flow.condition(2)
    counts = []
    for tf32 in (False, True, False, True):
        with torch.no_grad(), products(tf32):
            layer.affine(tokens, None, 0, condition)
        counts.append(capture.captured)
    assert counts == [1, 2, 2, 2]


def test_a_flow_that_moves_leaves_behind_what_was_made_for_it(flow):
    captured(flow)
    half, *_ = (layer.in_dtype(torch.bfloat16) for layer in flow.layers)
    flow.to(device="cpu", dtype=torch.float32)
    assert Graphs in flow.fits and flow.layers[0].in_dtype(torch.bfloat16) is half
    flow.double()
    assert not flow.fits and not any(layer.kept for layer in flow.layers)


def test_layers_that_do_not_say_so_are_refused(flow):
    pytest.importorskip("zuko")
    with pytest.raises(HarnessError, match="cannot be captured"):
        Graphs(flow.device, Replays()).layer(load_flow("maf-breast-cancer").layers[0])
