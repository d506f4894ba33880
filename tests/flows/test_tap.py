import pytest
import torch

from harness.decoders import build_decoder
from harness.flows.modules import LayerModule
from harness.flows.protocols import CausalFlow, CausalLayer, Denoises, MasksAttention
from harness.flows.tap import Observer, Tally, tap
from harness.flows.tarflow import TarFlow, TarFlowConfig
from harness.metrics.iterate_errors import ErrorRecorder


@pytest.fixture
def flow() -> TarFlow:
    config = TarFlowConfig(
        image_channels=1, image_size=8, patch=2, channels=64, blocks=3, layers_per_block=1, num_classes=4
    )
    flow = TarFlow(config).requires_grad_(False)
    for layer in flow.layers:
        torch.nn.init.normal_(layer.proj_out.weight, std=0.05)
    return flow


@pytest.mark.parametrize("options", [("sequential", {}), ("sejd", {}), ("ujd", {"scope": "sample", "tau": 0.01})])
def test_a_tapped_flow_decodes_the_same_and_the_counts_are_the_traces(flow, options):
    name, options = options
    decoder, latents = build_decoder(name, **options), flow.sample_latents(5)
    labels, tally = torch.tensor([0, 1, 2, 3, -1]), Tally()
    plain, tapped = decoder.decode(flow, latents, labels), decoder.decode(tap(flow, tally), latents, labels)
    assert torch.equal(plain.tokens, tapped.tokens)
    assert [tally.layers[trace.layer].token_evaluations for trace in plain.layers] == pytest.approx(
        [trace.token_evaluations for trace in plain.layers]
    )
    assert [tally.layers[trace.layer].calls for trace in plain.layers] == [trace.depth for trace in plain.layers]


def test_a_tap_satisfies_the_protocols(flow):
    tapped = tap(flow, Observer())
    assert isinstance(tapped, CausalFlow)
    assert all(isinstance(layer, CausalLayer) for layer in tapped.layers)


def test_rows_name_the_samples_that_are_still_iterating(flow):
    class Rows(Observer):
        def __init__(self):
            self.seen = []

        def evaluated(self, layer, call):
            rows = torch.arange(6) if call.rows is None else call.rows
            assert len(rows) == len(call.tokens)
            self.seen.append(rows)

    observer, latents = Rows(), flow.sample_latents(6)
    latents[2] *= 2  # one sample that takes longer than the others
    result = build_decoder("ujd", scope="sample", tau=0.02).decode(tap(flow, observer), latents)
    narrowed = [rows for rows in observer.seen if len(rows) < 6]
    assert narrowed and all(2 in rows.tolist() for rows in narrowed)
    assert len(observer.seen) == result.depth


def test_caches_are_counted_while_they_live(flow):
    tally = Tally()
    latents = flow.sample_latents(3)
    build_decoder("sequential").decode(tap(flow, tally), latents)
    one = flow.layers[0].new_cache(3, flow.condition(3)).nbytes
    assert tally.peak_cache_bytes == one  # freed between layers
    assert tally.live_cache_bytes == 0
    without = Tally()
    build_decoder("ujd", tau=10.0).decode(tap(flow, without), latents)
    assert without.peak_cache_bytes == 0


def test_what_a_flow_can_do_besides_is_found_through_the_tap(flow):
    tapped = tap(flow, Observer())
    assert isinstance(tapped, Denoises) and isinstance(tapped, MasksAttention)
    assert tapped.fits is flow.fits and (tapped.device, tapped.dtype) == (flow.device, flow.dtype)


class Steepened(LayerModule):
    """A triangular system that is not affine: tokens go through one more monotone map."""

    def __init__(self, layer):
        super().__init__()
        self.behind, self.number, self.block = layer, layer.number, layer.block
        self.num_tokens, self.token_dim = layer.num_tokens, layer.token_dim
        self.arrange, self.restore, self.new_cache, self.affine = (
            layer.arrange, layer.restore, layer.new_cache, layer.affine
        )  # fmt: skip

    def update(self, inputs, tokens, cache, start, condition):
        affine = super().update(inputs, tokens, cache, start, condition)
        return affine + 0.3 * affine.tanh()


@pytest.mark.parametrize("name", ["uncached", "ujd", "sejd", "gs-jacobi", "frontier"])
def test_a_layer_with_an_update_of_its_own_is_decoded_and_watched(flow, name):
    layers = [Steepened(layer) for layer in flow.layers]
    flow.blocks = torch.nn.ModuleList(reversed(layers))
    latents, tally = flow.sample_latents(3), Tally()
    exact = build_decoder("sequential").decode(flow, latents).tokens
    result = build_decoder(name, tau=0.0).decode(tap(flow, tally), latents)
    assert torch.allclose(result.tokens, exact, atol=1e-4)
    assert [tally.layers[trace.layer].calls for trace in result.layers] == [trace.depth for trace in result.layers]
    recorder = ErrorRecorder(flow.condition(3))
    rows = recorder.rows(build_decoder("ujd", tau=0.0).decode(tap(flow, recorder), latents))
    assert all(row["error_inf"] < 1e-4 for row in rows if row["iteration"] == flow.num_tokens - 1)
    bounded = build_decoder("ujd", tau=0.0, max_memory=200_000).decode(flow, latents)
    assert torch.allclose(bounded.tokens, exact, atol=1e-4)
