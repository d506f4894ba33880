"""The formula of memory against what is counted on flows of several shapes."""

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.attention import sdpa_kernel

from analysis.studies.memory.formula import predicted_live_bytes, predicted_peak_bytes, weights_bytes
from harness.decoders import build_decoder
from harness.flows.coupled import coupled_tarflow
from harness.flows.synthetic import synthetic_state
from harness.flows.tap import Tally, tap
from harness.flows.tarflow import TarFlow, TarFlowConfig
from harness.measure.probes.memory import KERNELS
from harness.measure.tasks.memory import weights_bytes as measured_weights
from harness.metrics.live import live_peak

TWICE = {"max_iterations": 2, "fallback": "leave"}
DECODERS = {"sequential": {}, "ujd": TWICE, "sejd": TWICE, "gs-jacobi": TWICE}


def random_flow(size, patch, channels, depth):
    config = TarFlowConfig(3, size, patch, channels, 4, depth)
    return TarFlow.from_state(synthetic_state(config), {})


def counted(flow, decoder, batch, kernel="fused"):
    """A row as the probe writes it."""
    build, tally = build_decoder(decoder, **DECODERS[decoder]), Tally()
    latents = flow.sample_latents(batch, torch.Generator().manual_seed(0))
    build.decode(flow, latents)  # what is computed once is no part of it
    with sdpa_kernel(KERNELS[kernel]):
        live = live_peak(lambda: build.decode(flow, latents)).bytes
    build.decode(tap(flow, tally), latents)
    config = flow.config
    length = flow.num_tokens
    window = {"sequential": 1, "gs-jacobi": -(-length // 8)}.get(decoder, length - 1)
    return {
        "batch_size": batch, "num_tokens": length, "token_dim": flow.token_dim, "channels": config.channels,
        "heads": config.channels // config.head_dim, "transformer_layers": config.layers_per_block, "classes": 0,
        "window": window, "attention": kernel, "decoder": decoder, "dtype": "float32", "method": "rss",
        "weights_bytes": measured_weights(flow), "cache_bytes": tally.peak_cache_bytes, "live_bytes": live,
    }  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("channels", "depth"), [(64, 8), (128, 1)])
def test_the_formula_is_within_a_fiftieth_of_the_count(channels, depth, decoder):
    row = pd.DataFrame([counted(random_flow(16, 4, channels, depth), decoder, 4)])
    assert predicted_live_bytes(row)[0] == pytest.approx(row["live_bytes"][0], rel=0.02)


def test_a_kernel_that_keeps_the_scores_needs_what_the_formula_says():
    flow = random_flow(64, 4, 64, 1)  # long enough for the scores to be the most
    fused, math = (pd.DataFrame([counted(flow, "ujd", 4, kernel)]) for kernel in ("fused", "math"))
    assert math["live_bytes"][0] > 1.1 * fused["live_bytes"][0]
    assert predicted_live_bytes(math)[0] == pytest.approx(math["live_bytes"][0], rel=0.02)


def test_the_allocators_peak_holds_the_weights_and_a_processs_growth_does_not():
    row = counted(random_flow(16, 4, 64, 1), "ujd", 2)
    frame = pd.DataFrame([row, row | {"method": "cuda_allocated"}])
    rss, cuda = predicted_peak_bytes(frame)
    assert cuda - rss == row["weights_bytes"]


def test_the_weights_of_a_shape_are_those_of_the_flow(tmp_path):
    flow = random_flow(32, 4, 64, 2)
    save_file(flow.state_dict(), tmp_path / "flow.safetensors")
    assert weights_bytes(4, 2, 64, 64, 48) == measured_weights(flow)


def test_classes_add_an_embedding_per_sample():
    row = counted(coupled_tarflow(), "ujd", 2)
    without, with_classes = predicted_live_bytes(pd.DataFrame([row, row | {"classes": 10}]))
    assert with_classes - without == 4 * 16 * 64  # one more sample's L * C
