"""Networks in half precision, tokens in single."""

import pytest
import torch

from harness.decoders import build_decoder
from harness.errors import HarnessError
from harness.flows import load_flow
from harness.flows.coupled import coupled_tarflow
from harness.flows.precision import multiplies_bfloat16
from harness.flows.tap import Observer, Tally, tap


@pytest.fixture(scope="module")
def digits():
    return load_flow("digits")


def test_a_flow_loaded_in_half_precision_has_float32_tokens():
    flow = load_flow("digits", dtype=torch.bfloat16)
    latents = flow.sample_latents(2, torch.Generator().manual_seed(0))
    assert latents.dtype == flow.var.dtype == torch.float32
    assert {parameter.dtype for layer in flow.layers for parameter in layer.parameters()} == {torch.bfloat16}
    result = build_decoder("sequential").decode(flow, latents)
    assert result.tokens.dtype == result.images.dtype == torch.float32
    assert not torch.equal(result.tokens, result.tokens.bfloat16().float())
    assert flow.encode(result.images)[0].dtype == torch.float32


def test_wider_dtypes_are_everywhere():
    flow = load_flow("digits", dtype=torch.float64)
    assert {tensor.dtype for tensor in (*flow.parameters(), *flow.buffers())} == {torch.float64}
    assert flow.sample_latents(1).dtype == torch.float64


@pytest.mark.parametrize("name", ["ujd", "sejd", "gs-jacobi", "frontier"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_option_changes_the_network_and_little_else(digits, name, dtype):
    latents = digits.sample_latents(4, torch.Generator().manual_seed(0))
    labels = torch.arange(4) if digits.num_classes else None
    plain = build_decoder(name, tau=0.1).decode(digits, latents, labels)
    half = build_decoder(name, tau=0.1, network_dtype=dtype).decode(digits, latents, labels)
    off = (half.tokens - plain.tokens).square().mean().sqrt()
    assert 0 < off < 0.05
    assert half.tokens.dtype == torch.float32
    assert {parameter.dtype for parameter in digits.parameters()} == {torch.float32}


def test_tau_zero_is_exact_whatever_the_dtype_of_the_iterations(digits):
    latents = digits.sample_latents(2, torch.Generator().manual_seed(0))
    exact = build_decoder("ujd", tau=0.0).decode(digits, latents)
    half = build_decoder("ujd", tau=0.0, network_dtype="bfloat16").decode(digits, latents)
    assert torch.equal(half.tokens, exact.tokens)


class Dtypes(Observer):
    def __init__(self):
        self.seen = set()

    def evaluated(self, layer, call):
        self.seen.add((layer.number, layer.proj_in.weight.dtype, call.answer.dtype))


def test_it_is_seen_from_outside_and_leaves_sequential_layers_alone():
    flow, seen, tally = coupled_tarflow(), Dtypes(), Tally()
    latents = flow.sample_latents(6, torch.Generator().manual_seed(0))
    decoder = build_decoder("sejd", network_dtype="bfloat16")
    watched = decoder.decode(tap(flow, seen), latents)
    halves = {(number, torch.bfloat16, torch.float32) for number in (2, 3)}
    assert seen.seen == {(1, torch.float32, torch.float32)} | halves
    assert torch.equal(watched.tokens, decoder.decode(flow, latents).tokens)
    bounded = build_decoder("sejd", network_dtype="bfloat16", max_memory=120_000)
    parted = bounded.decode(tap(flow, tally), latents)
    torch.testing.assert_close(parted.tokens, watched.tokens, rtol=2e-2, atol=2e-2)
    assert tally.layers[2].calls > parted.layers[1].depth


def test_a_copy_is_made_once_and_goes_with_its_layer():
    flow = coupled_tarflow()
    copied = flow.layers[0].in_dtype(torch.bfloat16)
    assert flow.layers[0].in_dtype(torch.bfloat16) is copied
    assert flow.layers[1].in_dtype(torch.bfloat16) is not copied


@pytest.mark.parametrize("name", ["ujd", "gs-jacobi"])
def test_an_unknown_dtype_is_a_sentence(name):
    with pytest.raises(HarnessError, match="did you mean 'bfloat16'"):
        build_decoder(name, network_dtype="bfloat")


@pytest.mark.parametrize(
    ("capabilities", "multiplies"),
    [({"avx512_f": True, "avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True),
     ({"avx2": True, "avx512_bf16": False}, False), ({"avx512_f": True}, False)],
    ids=["avx512", "amx", "arm", "avx2", "avx512 without"],
)  # fmt: skip
def test_a_processor_multiplies_bfloat16_by_instructions_of_its_own(monkeypatch, capabilities, multiplies):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert multiplies_bfloat16(torch.device("cpu")) is multiplies
    assert not multiplies_bfloat16(torch.device("meta"))


def test_a_torch_that_does_not_tell_is_taken_to_emulate(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not multiplies_bfloat16(torch.device("cpu"))


def test_tf32_is_refused_where_no_gpu_multiplies():
    with pytest.raises(HarnessError, match="tf32.*'cpu'.*float32"):
        load_flow("digits", dtype="tf32")


class Products(Observer):
    """How float32 products are made while a layer is called; the call after `most` of them fails."""

    def __init__(self, most=10**9):
        self.seen, self.most = [], most

    def evaluated(self, layer, call):
        self.seen.append(torch.get_float32_matmul_precision())
        if len(self.seen) > self.most:
            raise ValueError("the decode fails")


def test_tf32_holds_while_a_flow_is_decoded_and_no_longer():
    flow = coupled_tarflow()
    latents = flow.sample_latents(2, torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    for tf32, wanted in ((False, before), (True, "high")):
        flow.tf32 = tf32
        build_decoder("ujd").decode(tap(flow, watch := Products()), latents)
        assert set(watch.seen) == {wanted}
        with pytest.raises(ValueError):
            build_decoder("ujd").decode(tap(flow, Products(2)), latents)
        assert torch.get_float32_matmul_precision() == before != "high"
