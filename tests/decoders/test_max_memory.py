"""Decoding under a bound on memory. That every decoder's samples stay the same is a clause of the contract."""

import json
import os
import subprocess
import sys

import pytest
import torch

from harness.contract import Case, examine
from harness.decoders import build_decoder
from harness.decoders.micro_batches import LiveBytes, MicroBatches, bytes_of_one, merged, parse_bytes
from harness.decoders.trace import LayerTrace
from harness.errors import HarnessError
from harness.fitting.calibrate import store_calibration
from harness.flows.coupled import coupled_tarflow
from harness.flows.discrete import DiscreteFlow
from harness.flows.protocols import Guidance
from harness.flows.tap import Tally, tap

BATCH = 12


@pytest.fixture(scope="module")
def flow():
    return coupled_tarflow(num_classes=10)


def latents_of(flow):
    return flow.sample_latents(BATCH, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "size"), [(7, 7), ("7", 7), ("2GB", 2 * 10**9), ("0.5 MiB", 2**19), ("3kb", 3000), ("1 GiB", 2**30)]
)
def test_sizes_are_read_in_either_unit(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", [0, -1, True, "", "2GX", "GB", "0.1B", 1.5j, None])
def test_what_is_no_size_is_refused_when_the_decoder_is_built(text):
    with pytest.raises(HarnessError, match="max_memory"):
        parse_bytes(text)
    if text is not None:
        with pytest.raises(HarnessError, match="max_memory"):
            build_decoder("sequential", max_memory=text)


def test_live_bytes_are_those_of_tensors_not_of_views():
    given = torch.zeros(1000)
    with LiveBytes() as live:
        kept = given[10:] + 1  # 990 floats
        torch.zeros(100)  # freed at once
        view = kept.view(2, -1)[0]
    assert live.peak == 4 * (990 + 100)
    assert live.bytes == 4 * 990 and len(view) == 495


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("sequential", {}, 0.3),
        ("ujd", {}, 0.3),
        ("ujd", {"scope": "sample"}, 0.3),
        ("sejd", {}, 0.3),
        ("gs-jacobi", {"scope": "sample"}, 0.5),
        ("frontier", {}, 0.5),
        ("frontier", {"advance": 8}, 0.3),
    ],
)
@pytest.mark.parametrize("guidance", [None, Guidance(0.5)], ids=["plain", "guided"])
def test_fewer_bytes_the_same_samples_and_iterations(flow, name, options, share, guidance):
    latents, labels = latents_of(flow), torch.arange(BATCH) % 10 - 1
    with LiveBytes() as live:
        whole = build_decoder(name, **options).decode(flow, latents, labels, guidance)
    with LiveBytes() as cut:
        bound = int(share * live.peak)
        parted = build_decoder(name, **options, max_memory=bound).decode(flow, latents, labels, guidance)
    assert cut.peak <= bound
    assert cut.peak > 0.4 * bound  # it is not cut finer than it must be
    torch.testing.assert_close(parted.tokens, whole.tokens, rtol=1e-5, atol=1e-5)
    assert [trace.iterations for trace in parted.layers] == [trace.iterations for trace in whole.layers]
    assert parted.token_evaluations <= whole.token_evaluations * (1 + 1e-9)


@pytest.fixture(scope="module")
def classes():
    """A small network, beside which the weights that each class has of its own are large."""
    made = DiscreteFlow(torch.linspace(-1, 1, 5), torch.zeros(5, 1, 4, 4), 32, 2, 4).requires_grad_(False).eval()
    torch.nn.init.normal_(made.layer.proj_out.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    store_calibration(made, samples=64)
    return made


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ujd", {"initial": "fitted"}),
        ("ujd", {"correction": "fitted"}),
        ("fitted", {}),
        ("frontier", {"initial": "fitted", "correction": "fitted", "window": 4}),
    ],
)
def test_the_weights_of_each_samples_class_are_counted(classes, name, options):
    finding = examine("memory", Case(name, classes, options=options))
    assert finding.outcome == "passed", finding.evidence


def test_samples_that_stop_together_still_do(flow):
    """One sample that takes long keeps all the others iterating, also when they are in other calls."""
    latents = latents_of(flow) * torch.linspace(0.01, 1.0, BATCH)[:, None, None]
    whole, bound = build_decoder("ujd", tau=0.1).decode(flow, latents), 150_000
    parted = build_decoder("ujd", tau=0.1, max_memory=bound).decode(flow, latents)
    alone = [build_decoder("ujd", tau=0.1).decode(flow, row[None]).layers[-1].iterations for row in latents]
    assert min(alone) < max(alone)
    assert [trace.residuals for trace in parted.layers] == [
        pytest.approx(trace.residuals, rel=1e-3, abs=1e-5) for trace in whole.layers
    ]


def test_calls_are_cut_and_nothing_is_evaluated_twice(flow):
    latents, tally = latents_of(flow), Tally()
    result = build_decoder("ujd", tau=0.1, max_memory=200_000).decode(tap(flow, tally), latents)
    for trace in result.layers:
        counted = tally.layers[trace.layer]
        assert counted.calls > trace.depth
        assert counted.token_evaluations == pytest.approx(trace.token_evaluations)


def test_what_has_to_be_decoded_again_is_so_within_the_bound_and_for_all(flow):
    options = {"tau": 1e-4, "max_iterations": 3, "scope": "sample"}
    whole = build_decoder("ujd", **options).decode(flow, latents_of(flow))
    parted = build_decoder("ujd", **options, max_memory=150_000).decode(flow, latents_of(flow))
    assert [trace.flags for trace in parted.layers] == [trace.flags for trace in whole.layers]
    assert all("redecoded" in trace.flags for trace in parted.layers)
    torch.testing.assert_close(parted.tokens, whole.tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sequential", "ujd", "frontier", "sejd"])
def test_too_little_for_one_sample_is_refused_before_anything_is_decoded(flow, name):
    tally = Tally()
    with pytest.raises(HarnessError, match=r"max_memory of 5,000 bytes is too little: layer 1 takes [\d,]+ for 12"):
        build_decoder(name, max_memory="5kB").decode(tap(flow, tally), latents_of(flow))
    assert not tally.layers


def test_the_refusal_names_what_would_do(flow):
    decoder, latents = build_decoder("frontier"), latents_of(flow)
    with pytest.raises(HarnessError, match="stop together") as caught:
        MicroBatches(5000, latents, flow.condition(BATCH)).plan(flow.layers[0], decoder.footprint(flow.layers[0]))
    needed = int(str(caught.value).partition(" takes ")[2].partition(" ")[0].replace(",", ""))
    build_decoder("frontier", max_memory=needed).decode(flow, latents)
    with pytest.raises(HarnessError, match="too little"):
        build_decoder("frontier", max_memory=needed - 1).decode(flow, latents)


def test_a_sample_is_counted_with_all_that_its_cache_keeps(flow):
    condition = flow.condition(BATCH, torch.arange(BATCH) % 10)
    kept, call = bytes_of_one(flow.layers[0], latents_of(flow)[:1], condition, 15, cached=True)
    cache = flow.layers[0].new_cache(1, condition.select(torch.tensor([0])))
    assert kept >= cache.nbytes + cache.context.offset.nbytes
    assert call > 15 * 64 * 4 * 9  # hidden states of 64 channels: at least two of 4 * 64 and one of 64


def test_traces_of_micro_batches_make_one():
    slow = LayerTrace(1, 2, "jacobi", 3, True, [1.0, 0.5, 0.1], 45.0, 3, ("growing",))
    quick = LayerTrace(1, 2, "jacobi", 2, False, [2.0, float("nan")], 30.0, 2, ("non-finite",))
    both = merged([slow, quick], [1, 3])
    assert (both.iterations, both.depth, both.converged) == (3, 3, False)
    assert both.token_evaluations == (45 + 3 * 30) / 4
    assert both.residuals[0] == 2.0 and both.residuals[1] != both.residuals[1] and both.residuals[2] == 0.1
    assert both.flags == ("growing", "non-finite")


RESIDENT = """
import json, sys, torch
from harness.decoders import build_decoder
from harness.flows import load_flow
from harness.metrics.memory import resident_peak
torch.set_num_threads(1)
flow, options = load_flow("random:4-512-1-1@64"), json.loads(sys.argv[1])
decoder = build_decoder("ujd", tau=0.0, max_iterations=2, fallback="leave", **options)
decoder.decode(flow, flow.sample_latents(1))
latents = flow.sample_latents(48)
print(resident_peak(lambda: decoder.decode(flow, latents)).bytes)
"""


@pytest.mark.slow
def test_the_memory_of_the_process_goes_down_too(tmp_path):
    """In fresh processes: a quarter of a gigabyte, or what was allowed and a little for the libraries."""

    def peak(**options):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RESIDENT, json.dumps(options)]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    whole, allowed = peak(), 60 * 10**6
    assert whole > 3 * allowed
    assert peak(max_memory=allowed) < 1.5 * allowed
