"""Replayed calls: that what they read and write is kept and brought up to date; the capture itself needs a GPU."""

import pytest
import torch

from harness.decoders import build_decoder
from harness.decoders.sequential import solve_sequential
from harness.errors import HarnessError
from harness.flows import load_flow
from harness.flows.coupled import coupled_tarflow
from harness.flows.graphs import GraphedLayer
from harness.flows.protocols import Guidance


class Replays:
    """A capture that runs the call again, into the same outputs: what a graph does, without one."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, call):
        self.captured += 1
        outputs = tuple(torch.full_like(part, float("nan")) for part in call())

        def replay():
            self.replayed += 1
            for kept, new in zip(outputs, call(), strict=True):
                kept.copy_(new)

        return replay, outputs


@pytest.fixture
def flow():
    return coupled_tarflow(num_classes=10)


def solve(layer, decoder, inputs, condition):
    if decoder == "sequential":
        return solve_sequential(layer, inputs, condition)
    return build_decoder(decoder, tau=1e-3).solve(layer, inputs, condition)


@pytest.mark.parametrize("decoder", ["sequential", "ujd", "frontier", "gs-jacobi"])
@pytest.mark.parametrize("guidance", [None, Guidance(0.5, annealed=True)], ids=["plain", "guided"])
def test_replayed_calls_follow_new_tokens_and_new_labels(flow, decoder, guidance):
    layer, capture = flow.layers[1], Replays()
    graphed = GraphedLayer(layer, capture)
    with torch.inference_mode():
        for seed, labels in ((0, [0, 1, 2]), (1, [5, -1, 7]), (2, [0, 1, 2])):
            condition = flow.condition(3, torch.tensor(labels), guidance)
            inputs = flow.sample_latents(3, torch.Generator().manual_seed(seed))
            tokens, trace = solve(graphed, decoder, inputs, condition)
            wanted, expected = solve(layer, decoder, inputs, condition)
            torch.testing.assert_close(tokens, wanted)
            assert (trace.iterations, trace.token_evaluations) == (expected.iterations, expected.token_evaluations)
    assert capture.replayed > 0


def test_a_shape_is_captured_once(flow):
    capture = Replays()
    graphed, steps = GraphedLayer(flow.layers[0], capture), flow.num_tokens - 1
    with torch.inference_mode():
        for batch in (2, 3, 2, 3):
            solve_sequential(graphed, flow.sample_latents(batch), flow.condition(batch))
    assert (capture.captured, capture.replayed) == (2 * steps, 4 * steps)


def test_a_window_on_a_prefix_is_called_as_it_is(flow):
    capture = Replays()
    graphed, condition = GraphedLayer(flow.layers[0], capture), flow.condition(2)
    tokens = flow.sample_latents(2)
    with torch.inference_mode():
        cache, plain = graphed.new_cache(2, condition), flow.layers[0].new_cache(2, condition)
        for start, end in ((0, 4), (4, 9), (9, 10)):
            found = graphed.affine(tokens[:, start:end], cache, start, condition)
            wanted = flow.layers[0].affine(tokens[:, start:end], plain, start, condition)
            for i in range(2):
                torch.testing.assert_close(found[i], wanted[i])
    assert capture.captured == 2


def test_layers_that_do_not_say_so_are_refused():
    pytest.importorskip("zuko")
    with pytest.raises(HarnessError, match="cannot be captured"):
        GraphedLayer(load_flow("maf-breast-cancer").layers[0])


@pytest.mark.parametrize("name", ["sequential", "ujd"])
def test_graphs_are_refused_without_a_gpu(flow, name):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(HarnessError, match="cuda_graphs"):
        build_decoder(name, cuda_graphs=True).decode(flow, flow.sample_latents(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures CUDA graphs, which needs a GPU")
@pytest.mark.parametrize("name", ["sequential", "ujd", "frontier"])
def test_captured_graphs_give_the_same_samples(name):
    flow = load_flow("digits", device="cuda")
    latents = flow.sample_latents(4, torch.Generator().manual_seed(0))
    plain = build_decoder(name).decode(flow, latents)
    for _ in range(2):
        captured = build_decoder(name, cuda_graphs=True).decode(flow, latents)
        torch.testing.assert_close(captured.tokens, plain.tokens, rtol=1e-4, atol=1e-4)
