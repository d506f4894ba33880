"""zuko's own inverse, a fixed number of passes, is the oracle: nothing of ours is in it."""

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from harness.contract import CLAUSES, Case, examine
from harness.decoders import Guidance, build_decoder, decoders
from harness.errors import CheckpointError, HarnessError
from harness.flows import load_flow
from harness.flows.protocols import Condition
from harness.flows.zuko_flow import ZukoFlow, checkpoint_metadata

zuko = pytest.importorskip("zuko", reason="the optional extra zuko is not installed")

FEATURES = 12


def coupled(dtype=torch.float32, **options):
    """A random MAF whose features depend on each other: its networks as initialised are nearly constant."""
    maf = zuko.flows.MAF(**{"features": FEATURES, "transforms": 4, "hidden_features": (32, 32)} | options)
    with torch.no_grad():
        for transform in maf.transform.transforms:
            transform.hyper[-1].weight *= 3
            transform.hyper[-1].bias.normal_(std=0.5)  # also the constants of the first feature
    return maf.to(dtype)


VARIANTS = {
    "alternating": {},
    "random orders": {"randperm": True},
    "two passes": {"passes": 2},
    "three passes": {"passes": 3, "randperm": True},
    "one hidden layer": {"hidden_features": (64,), "activation": torch.nn.Tanh},
}


@pytest.fixture(params=VARIANTS)
def maf(request):
    return coupled(**VARIANTS[request.param])


@pytest.mark.parametrize("decoder", ["sequential", "uncached", "ujd", "sejd"])
def test_decoders_agree_with_zukos_own_inverse(maf, decoder):
    flow = ZukoFlow(maf)
    latents = flow.sample_latents(16, torch.Generator().manual_seed(1))
    wanted = maf().transform.inv(latents[..., 0])
    result = build_decoder(decoder, tau=0.0).decode(flow, latents)
    assert result.images is None
    assert (result.tokens[..., 0] - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_agreement_is_to_rounding_in_float64():
    maf = coupled(torch.float64)
    flow = ZukoFlow(maf)
    latents = flow.sample_latents(16)
    assert latents.dtype == torch.float64
    wanted = maf().transform.inv(latents[..., 0])
    found = build_decoder("sequential").decode(flow, latents).tokens[..., 0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_jacobi_has_work_to_do():
    flow = ZukoFlow(coupled())
    result = build_decoder("ujd", tau=1e-5).decode(flow, flow.sample_latents(8))
    assert min(trace.iterations for trace in result.layers) >= 3


def test_encode_is_the_inverse_and_its_logdet_zukos_own(maf):
    flow = ZukoFlow(maf)
    latents = flow.sample_latents(4)
    samples = build_decoder("sequential").decode(flow, latents).tokens
    encoded, logdet = flow.encode(samples[..., 0])
    torch.testing.assert_close(encoded, flow.scale_latents(latents), rtol=1e-4, atol=1e-4)
    # zuko's determinant has the first feature's constants too, which are the scale of the prior and of no layer here.
    _, wanted = maf().transform.call_and_ladj(samples[..., 0])
    folded = sum(float(block.outer[0].sum()) for block in flow.blocks)
    prior = float(flow.prior[0].sum())
    assert folded or prior
    torch.testing.assert_close(logdet * FEATURES, wanted + prior, rtol=1e-4, atol=1e-4)


def test_a_base_that_is_not_standard_normal_is_the_priors_scale():
    maf = coupled()
    maf.base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, loc=torch.full((FEATURES,), 0.3), scale=torch.full((FEATURES,), 2.0), buffer=True
    )
    flow = ZukoFlow(maf)
    latents = flow.sample_latents(4)
    found = build_decoder("sequential").decode(flow, latents).tokens[..., 0]
    torch.testing.assert_close(found, maf().transform.inv(0.3 + 2.0 * latents[..., 0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clause", CLAUSES)
@pytest.mark.parametrize("decoder", decoders.names())
def test_every_decoder_keeps_its_contract_on_a_flow_that_is_no_transformer(decoder, clause):
    torch.manual_seed(0)
    finding = examine(clause, Case(decoder, ZukoFlow(coupled()), "maf"))
    assert finding.outcome in ("passed", "not applicable"), finding.evidence


def test_a_saved_maf_is_recognised_and_decodes_the_same(maf, tmp_path):
    activation = "Tanh" if any(isinstance(m, torch.nn.Tanh) for m in maf.modules()) else "ReLU"
    path = tmp_path / "maf.safetensors"
    save_file(maf.state_dict(), path, metadata=checkpoint_metadata(activation, data="none"))
    loaded, latents = load_flow(path), torch.randn(4, FEATURES, 1)
    decode = build_decoder("sequential").decode
    assert torch.equal(decode(loaded, latents).tokens, decode(ZukoFlow(maf), latents).tokens)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda state: state.pop("transform.transforms.1.order"), "fit no MAF"),
        (lambda state: state.pop("transform.transforms.2.hyper.2.weight"), "fit no MAF"),
        (lambda state: state.update({"transform.transforms.0.hyper.4.weight": torch.zeros(36, 32)}), "two numbers"),
        (lambda state: state.update({"transform.transforms.0.hyper.0.weight": torch.zeros(7)}), "two numbers"),
    ],
)
def test_a_spoilt_checkpoint_is_one_sentence(tmp_path, spoil, sentence):
    state = coupled().state_dict()
    spoil(state)
    save_file(state, tmp_path / "maf.safetensors")
    with pytest.raises(CheckpointError, match=sentence) as error:
        load_flow(tmp_path / "maf.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [('{"activation": "Module"}', "activation is 'Module'"), ("[1]", "no JSON object"), ("{", "no JSON object")],
)
def test_metadata_is_not_trusted(tmp_path, text, sentence):
    save_file(coupled().state_dict(), tmp_path / "maf.safetensors", metadata={"zuko": text})
    with pytest.raises(CheckpointError, match=sentence):
        load_flow(tmp_path / "maf.safetensors")


@pytest.mark.parametrize(
    "build",
    [lambda: zuko.flows.NSF(features=4), lambda: zuko.flows.MAF(features=4, context=2)],
    ids=["splines", "context"],
)
def test_what_is_not_affine_or_has_context_is_refused(build):
    with pytest.raises(HarnessError):
        ZukoFlow(build())


def test_labels_and_guidance_are_refused():
    flow = ZukoFlow(coupled())
    with pytest.raises(HarnessError):
        flow.condition(2, labels=torch.zeros(2, dtype=torch.long))
    with pytest.raises(HarnessError):
        flow.condition(2, guidance=Guidance(1.0))


# The cache of activations.


def test_a_window_on_a_cached_prefix_gives_what_a_whole_forward_pass_gives(maf):
    layer = ZukoFlow(maf.double()).layers[1]
    tokens, condition = torch.randn(3, FEATURES, 1, dtype=torch.float64), Condition()
    wanted = layer.affine(tokens, None, 0, condition)
    cache = layer.new_cache(3, condition)
    parts = []
    for start, end in [(0, 1), (1, 2), (2, 7), (7, 8), (8, FEATURES)]:
        layer.affine(torch.full_like(tokens[:, start:end], torch.nan), cache, start, condition)  # a worse iterate
        parts.append(layer.affine(tokens[:, start:end], cache, start, condition))
    for found, whole in zip(zip(*parts, strict=True), wanted, strict=True):
        torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-12, atol=1e-12)


def flops(decode):
    counter = FlopCounterMode(display=False)
    with counter:
        decode()
    return counter.get_total_flops()


def test_a_sequential_decode_costs_no_more_arithmetic_than_a_forward_pass():
    flow = ZukoFlow(coupled(hidden_features=(48, 48)))
    latents = flow.sample_latents(8)
    encode = flops(lambda: flow.encode(latents))
    assert encode > 0
    assert flops(lambda: build_decoder("sequential").decode(flow, latents)) <= encode
    # the paper's baseline pays for a forward pass in every step
    assert flops(lambda: build_decoder("uncached").decode(flow, latents)) == (FEATURES - 1) * encode


def test_a_residual_network_is_refused_since_its_units_cannot_be_sorted_by_one_degree():
    with pytest.raises(HarnessError, match="masked linear"):
        ZukoFlow(zuko.flows.MAF(features=4, residual=True, hidden_features=(8, 8)))
