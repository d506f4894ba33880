"""TarFlow against the published implementation's own outputs, and against its mathematics."""

import json

import pytest
import torch
from safetensors import safe_open

from harness.decoders import Guidance, build_decoder
from harness.errors import HarnessError
from harness.flows.tarflow import TarFlow, TarFlowConfig, negative_log_likelihood

GOLDEN = ("uncond", "cond_guided")


def random_flow(**changes) -> TarFlow:
    """A small flow whose layers really depend on their predecessors (a fresh one has an output of zero)."""
    shape = dict(image_channels=3, image_size=8, patch=2, channels=64, blocks=3, layers_per_block=2) | changes
    flow = TarFlow(TarFlowConfig(**shape)).requires_grad_(False).eval()
    for block in flow.blocks:
        block.proj_out.weight.normal_(std=0.05)
    return flow


@pytest.fixture(params=GOLDEN)
def golden(request, shared):
    with safe_open(shared / "golden" / f"{request.param}.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        options = json.loads(file.metadata()["reverse"])
    state = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    guidance = None
    if options:
        guidance = Guidance(options["guidance"], options["guide_what"], options["annealed_guidance"])
    return TarFlow.from_state(state, {}), tensors, guidance


def close(actual, expected):
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_encode_reproduces_the_published_forward(golden):
    flow, tensors, _ = golden
    latents, logdet = flow.encode(tensors["forward.x"], tensors.get("y"))
    close(latents, tensors["forward.z"])
    close(logdet, tensors["forward.logdet"])


def test_every_layer_reproduces_the_published_forward(golden):
    flow, tensors, _ = golden
    condition = flow.condition(3, tensors.get("y"))
    tokens = flow.to_tokens(tensors["forward.x"])
    for layer in reversed(flow.layers):
        x = layer.arrange(tokens)
        log_scale, shift = layer.affine(x[:, :-1], None, 0, condition)
        tokens = layer.restore(torch.cat([x[:, :1], (x[:, 1:] - shift) * torch.exp(-log_scale)], dim=1))
        close(tokens, tensors[f"forward.block{layer.block}"])


@pytest.mark.parametrize("name", ["sequential", "ujd", "sejd"])
def test_decoding_reproduces_the_published_reverse(golden, name):
    flow, tensors, guidance = golden
    result = build_decoder(name, tau=0.0).decode(flow, tensors["reverse.latents"], tensors.get("y"), guidance)
    close(result.images, tensors[f"reverse.seq{flow.num_layers}"])


def test_every_layer_reproduces_the_published_reverse(golden):
    flow, tensors, guidance = golden
    decoder = build_decoder("sequential")
    condition = flow.condition(3, tensors.get("y"), guidance)
    tokens = flow.scale_latents(tensors["reverse.latents"])
    for i, layer in enumerate(flow.layers):
        if i:
            close(flow.to_images(tokens), tensors[f"reverse.seq{i}"])
        tokens = layer.restore(decoder.solve(layer, layer.arrange(tokens), condition)[0])


@pytest.mark.parametrize("labels", [None, torch.tensor([2, -1, 0])])
@pytest.mark.parametrize("volume_preserving", [False, True])
def test_decoding_inverts_encoding(labels, volume_preserving):
    flow = random_flow(num_classes=3, volume_preserving=volume_preserving).double()
    flow.var.uniform_(0.5, 2.0)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64) * 2 - 1
    latents, logdet = flow.encode(images, labels)
    back = build_decoder("sequential").decode(flow, latents / flow.var.sqrt(), labels)
    torch.testing.assert_close(back.images, images, rtol=0, atol=1e-10)
    assert not volume_preserving or (logdet == 0).all()


def test_logdet_is_that_of_the_jacobian():
    flow = random_flow(image_channels=1, image_size=4, patch=2, blocks=2).double()
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.encode(x)[0].flatten(), image).reshape(16, 16)
    _, logdet = flow.encode(image)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet / 16, logdet[0])


@pytest.mark.parametrize("windows", [[1] * 15, [15], [4, 1, 7, 3], [14, 1]])
@pytest.mark.parametrize("guidance", [None, Guidance(1.5, "ab", annealed=True, temperature=1.3), Guidance(2.0, "a")])
def test_any_cut_into_windows_gives_the_same_parameters(windows, guidance):
    flow = random_flow(num_classes=4)
    condition = flow.condition(2, torch.tensor([1, -1]), guidance)
    tokens = torch.randn(2, 16, 12)
    for layer in flow.layers:
        whole = layer.affine(tokens[:, :-1], None, 0, condition)
        cache, start, parts = layer.new_cache(2, condition), 0, []
        for window in windows:
            parts.append(layer.affine(tokens[:, start : start + window], cache, start, condition))
            start += window
        for expected, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_a_parameter_depends_on_no_later_token():
    flow = random_flow()
    tokens = torch.randn(1, 16, 12, requires_grad=True)
    log_scale, shift = flow.layers[0].affine(tokens, None, 0, flow.condition(1))
    (gradient,) = torch.autograd.grad((log_scale + shift)[:, 5].sum(), tokens)
    assert (gradient[:, 6:] == 0).all() and (gradient[:, :6] != 0).any()


def test_the_unconditional_class_embedding_is_the_mean_over_classes():
    flow = random_flow(num_classes=3)
    images = torch.randn(2, 3, 8, 8)
    without, _ = flow.encode(images)
    negative, _ = flow.encode(images, torch.tensor([-1, -1]))
    labelled, _ = flow.encode(images, torch.tensor([0, 1]))
    torch.testing.assert_close(without, negative)
    assert not torch.allclose(without, labelled)


def test_guidance_extrapolates_from_the_unconditional_pass():
    flow = random_flow(num_classes=3)
    layer, tokens, labels = flow.layers[0], torch.randn(2, 15, 12), torch.tensor([0, 2])
    a, b = layer.affine(tokens, None, 0, flow.condition(2, labels))
    a_u, b_u = layer.affine(tokens, None, 0, flow.condition(2))
    guided_a, guided_b = layer.affine(tokens, None, 0, flow.condition(2, labels, Guidance(2.0, "b")))
    torch.testing.assert_close(guided_a, a)
    torch.testing.assert_close(guided_b, b + 2.0 * (b - b_u), rtol=1e-4, atol=1e-5)
    annealed, _ = layer.affine(tokens, None, 0, flow.condition(2, labels, Guidance(2.0, "a", annealed=True)))
    weight = 2.0 * torch.arange(1, 16)[:, None] / 15
    torch.testing.assert_close(annealed, a + weight * (a - a_u), rtol=1e-4, atol=1e-5)


def test_temperature_guides_an_unconditional_flow():
    flow = random_flow()
    layer, tokens = flow.layers[0], torch.randn(2, 15, 12)
    plain, _ = layer.affine(tokens, None, 0, flow.condition(2))
    guided, _ = layer.affine(tokens, None, 0, flow.condition(2, guidance=Guidance(1.0, "ab", temperature=1.5)))
    assert (guided[:, 0] - plain[:, 0]).abs().max() < 1e-5  # one token has nothing to attend to but itself
    assert not torch.allclose(guided, plain, atol=1e-4)


def test_denoising_descends_the_likelihood_and_moves_along_its_gradient():
    flow = random_flow()
    images = torch.randn(2, 3, 8, 8)
    before = negative_log_likelihood(*flow.encode(images))
    denoised = flow.denoise(images, sigma=0.05)
    assert negative_log_likelihood(*flow.encode(denoised)) < before
    twice = flow.denoise(images, sigma=0.05, multiplier=2.0)
    torch.testing.assert_close(twice - images, 2 * (denoised - images), rtol=1e-4, atol=1e-6)
    alone = flow.denoise(images[:1], sigma=0.05)
    torch.testing.assert_close(alone, denoised[:1], rtol=1e-4, atol=1e-6)


def test_patches_are_those_of_unfold():
    flow = random_flow()
    images = torch.randn(2, 3, 8, 8)
    expected = torch.nn.functional.unfold(images, kernel_size=2, stride=2).transpose(1, 2)
    assert torch.equal(flow.to_tokens(images), expected)
    assert torch.equal(flow.to_images(flow.to_tokens(images)), images)


def test_a_network_in_half_precision_takes_and_gives_float32_tokens():
    flow = random_flow()
    tokens = torch.randn(2, 15, 12)
    exact, _ = flow.layers[0].affine(tokens, None, 0, flow.condition(2))
    half, _ = flow.bfloat16().layers[0].affine(tokens, None, 0, flow.condition(2))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.05)


def test_latents_are_the_same_for_the_same_seed():
    flow = random_flow()
    first, second = (flow.sample_latents(3, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (3, 16, 12)


@pytest.mark.parametrize(
    ("labels", "guidance", "words"),
    [
        (torch.tensor([0, 3]), None, "label 3 is out of range: this flow has classes 0 to 2"),
        (torch.tensor([0]), None, "expected 2 integer labels"),
        (torch.tensor([0.0, 1.0]), None, "expected 2 integer labels"),
    ],
)
def test_bad_labels_are_refused(labels, guidance, words):
    with pytest.raises(HarnessError, match=words):
        random_flow(num_classes=3).condition(2, labels, guidance)


def test_bad_guidance_is_refused():
    with pytest.raises(HarnessError, match="components must be"):
        Guidance(1.0, "c")
    with pytest.raises(HarnessError, match="temperature must be above 0"):
        Guidance(1.0, temperature=0.0)
    with pytest.raises(HarnessError, match="no classes"):
        random_flow().condition(2, guidance=Guidance(1.0))
    with pytest.raises(HarnessError, match="labels were given"):
        random_flow().condition(1, torch.tensor([0]))
