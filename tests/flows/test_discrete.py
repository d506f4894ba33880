"""Discrete tokens: the Gumbel-max trick as latents, exact decoding, encoding, and what is refused."""

import itertools
import math

import pytest
import torch
from safetensors.torch import save_file

from harness.decoders import Guidance, build_decoder
from harness.errors import CheckpointError, HarnessError
from harness.flows import load_flow
from harness.flows.calls import jacobi_update
from harness.flows.coupled import coupled_discrete
from harness.flows.discrete import DiscreteFlow, gumbel, normal


@pytest.fixture(scope="module")
def flow():
    return coupled_discrete()


def latents_of(flow, count, seed=0):
    return flow.sample_latents(count, torch.Generator().manual_seed(seed))


def tiny(levels=3, side=2, seed=0):
    """A model whose images can all be listed."""
    torch.manual_seed(seed)
    flow = DiscreteFlow(torch.linspace(-1, 1, levels), torch.randn(levels, 1, side, side), 32, 1)
    torch.nn.init.normal_(flow.layer.proj_out.weight, std=0.5)
    torch.nn.init.normal_(flow.layer.embed)
    return flow.requires_grad_(False).eval()


def every_image(flow):
    count = flow.num_tokens - 1
    levels = torch.tensor(list(itertools.product(range(flow.token_dim), repeat=count)))
    return flow.levels[levels].view(-1, *flow.image_shape)


def test_noise_is_standard_gumbel_and_comes_from_the_latents_one_to_one():
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(gumbel(z).mean()) == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert float(gumbel(z).var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    torch.testing.assert_close(normal(gumbel(z)), z, atol=1e-6, rtol=1e-6)
    assert gumbel(torch.tensor([-1e38, 1e38])).isfinite().all()


def test_probabilities_of_all_images_sum_to_one():
    flow = tiny()
    _, log_p = flow.encode(every_image(flow).double())
    assert float((4 * log_p).exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_probabilities_of_the_model(temperature):
    flow = tiny().tempered(temperature)
    images, count = every_image(flow), 40_000
    drawn = build_decoder("ujd", tau=0.0).decode(flow, latents_of(flow, count)).images
    share = (drawn[:, None] == images).flatten(2).all(2).double().mean(0)
    expected = (4 * flow.encode(images)[1]).exp().double()
    chi = count * ((share - expected).square() / expected).sum()
    assert float(chi) < 80 + 5 * math.sqrt(160)  # 81 images; five standard deviations of its own


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("labelled", [True, False])
def test_every_way_of_iterating_gives_the_sequential_sample_token_for_token(flow, temperature, labelled):
    flow, latents = flow.tempered(temperature), latents_of(flow, 16)
    labels = torch.arange(16) % 5 - 1 if labelled else None
    exact = build_decoder("sequential").decode(flow, latents, labels).tokens
    ways = [("ujd", {"initial": initial}) for initial in ("zeros", "normal", "input")]
    for name, options in [*ways, ("ujd", {"scope": "sample"}), ("gs-jacobi", {"blocks": 4}), ("frontier", {})]:
        for tau in (0.0, 0.5):  # a changed token is a residual of 1, so that any tau below is exact
            result = build_decoder(name, tau=tau, **options).decode(flow, latents, labels)
            assert torch.equal(result.tokens, exact), (name, options, tau)
            assert result.converged
    assert set(exact[:, 1:].unique().tolist()) == {0.0, 1.0} and (exact[:, 1:].sum(2) == 1).all()


def test_labels_matter_and_a_negative_one_is_none(flow):
    latents, decoder = latents_of(flow, 4), build_decoder("ujd", tau=0.0)
    by_class, none = (decoder.decode(flow, latents, torch.full((4,), label)).tokens for label in (1, -1))
    assert not torch.equal(by_class, none)
    assert torch.equal(none, decoder.decode(flow, latents).tokens)
    assert torch.equal(none, decoder.decode(flow, latents, torch.full((4,), -3)).tokens)


def test_a_token_depends_on_those_before_it_and_its_own_noise_alone(flow):
    latents, condition = latents_of(flow, 2), flow.condition(2)
    tokens = build_decoder("sequential").decode(flow, latents).tokens
    other_tokens, other_latents = tokens.clone(), latents.clone()
    other_tokens[:, 9:], other_latents[:, 10:] = tokens.flip(0)[:, 9:], -latents[:, 10:]
    other_tokens[:, 0] = 7.0  # token 0 is not looked at
    update = jacobi_update(flow.layer, other_latents, other_tokens, condition)
    assert torch.equal(update[:, 1:10], tokens[:, 1:10])


def test_greedy_samples_are_those_of_their_class_whatever_the_latents(flow):
    greedy = flow.tempered(0)
    first, second = (
        build_decoder("ujd", tau=0.0).decode(greedy, latents_of(flow, 4, seed), torch.arange(4)).images
        for seed in (0, 1)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_an_encoded_image_decodes_to_itself(flow, temperature):
    flow = flow.tempered(temperature)
    images = flow.levels[torch.randint(17, (8, 1, 4, 4), generator=torch.Generator().manual_seed(1))]
    latents, log_p = flow.encode(images + 0.01, torch.arange(8) % 4)
    assert latents.isfinite().all() and log_p.shape == (8,) and (log_p < 0).all()
    assert torch.equal(build_decoder("ujd", tau=0.0).decode(flow, latents, torch.arange(8) % 4).images, images)


def test_what_needs_an_affine_layer_is_refused_in_a_sentence(flow):
    tokens = latents_of(flow, 1)
    with pytest.raises(HarnessError, match="no log_scale and no shift"):
        flow.layer.affine(tokens[:, :-1], None, 0, flow.condition(1))
    with pytest.raises(HarnessError, match="discrete tokens have neither"):
        build_decoder("ujd").decode(flow, tokens, torch.tensor([0]), Guidance(1.0))
    build_decoder("ujd").decode(flow, tokens, torch.tensor([0]), Guidance(0.0))
    with pytest.raises(HarnessError, match="temperature"):
        flow.tempered(-1)
    with pytest.raises(HarnessError, match="temperature 0"):
        flow.tempered(0).encode(torch.zeros(1, 1, 4, 4))
    with pytest.raises(HarnessError, match="no classes"):
        coupled_discrete(num_classes=0).condition(1, torch.tensor([0]))
    with pytest.raises(HarnessError, match="expected images"):
        flow.encode(torch.zeros(1, 3, 4, 4))


def test_a_file_and_a_state_dict_give_the_same_flow(flow, tmp_path):
    save_file(flow.state_dict(), tmp_path / "mine.safetensors")
    latents = latents_of(flow, 3)
    wanted = build_decoder("ujd").decode(flow, latents).tokens
    for held in (tmp_path / "mine.safetensors", flow.state_dict()):
        loaded = load_flow(held)
        assert (loaded.num_classes, loaded.image_shape) == (4, (1, 4, 4))
        assert torch.equal(build_decoder("ujd").decode(loaded, latents).tokens, wanted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks.0.proj_out.weight": None}, "missing"),
        ({"blocks.0.more": torch.zeros(1)}, "belong to no model of discrete tokens"),
        ({"blocks.0.unigram": torch.zeros(17, 16)}, "expected 4 dimensions"),
        ({"blocks.0.embed": torch.zeros(17, 33)}, "head dimension"),
        ({"blocks.0.embed": torch.zeros(5, 32)}, "has shape"),
        ({"blocks.0.class_embed": torch.zeros(1, 32)}, "belong to no model"),
        ({"levels": torch.zeros(17, dtype=torch.long)}, "floating-point"),
        ({"blocks.0.unigram": torch.full((17, 1, 4, 4), torch.nan)}, "NaN"),
    ],
)
def test_a_state_dict_of_another_shape_is_refused(flow, change, said):
    state = {name: tensor for name, tensor in (flow.state_dict() | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=said):
        load_flow(state)
