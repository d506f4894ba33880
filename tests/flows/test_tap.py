import pytest
import torch

from harness.decoders import build_decoder
from harness.flows.protocols import CausalFlow, CausalLayer
from harness.flows.tap import Observer, Tally, tap
from harness.flows.tarflow import TarFlow, TarFlowConfig


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
    latents[2] *= 6  # one sample that takes longer than the others
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
