"""The compiled parts of a network: the same numbers, compiled once for all layers and sizes, by a stand-in here."""

import pytest
import torch
import torch._dynamo.testing
from torch.nn.attention.bias import causal_lower_right

from harness.decoders import build_decoder
from harness.flows import compiled
from harness.flows.coupled import coupled_tarflow
from harness.flows.transformer import _window_mask


@pytest.fixture
def counted(monkeypatch):
    """Compilation on the CPU, by a backend that runs what was traced and counts."""
    seen = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "BACKEND", seen)
    monkeypatch.setattr("harness.flows.compiled.compiles", lambda device: True)
    monkeypatch.setattr("harness.flows.transformer.compiles", lambda device: True)
    compiled.compiled.cache_clear()
    torch._dynamo.reset()
    yield seen
    compiled.compiled.cache_clear()
    torch._dynamo.reset()


def test_on_the_cpu_nothing_is_compiled():
    assert not compiled.compiles("cpu")


def test_what_somebody_else_compiles_is_not_compiled_inside(monkeypatch):
    monkeypatch.setattr(compiled, "_works", lambda device: True)
    assert compiled.compiles("cuda")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not compiled.compiles("cuda")


def test_a_compiler_that_is_switched_off_is_found_out(monkeypatch):
    monkeypatch.setattr(compiled, "compiled", lambda function: function)
    assert not compiled._works.__wrapped__("cpu")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert compiled._works.__wrapped__("cpu")


def test_where_the_compiler_fails_the_network_is_plain(monkeypatch, caplog):
    def fails(function):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(compiled, "compiled", fails)
    assert not compiled._works.__wrapped__("cuda")
    assert "no C compiler" in caplog.text


def test_layers_windows_and_batches_share_what_is_compiled(counted):
    flow = coupled_tarflow(num_classes=10)
    assert sum(len(layer.attn_blocks) for layer in flow.layers) > 2
    for number, batch in enumerate((3, 5, 2)):
        latents, labels = flow.sample_latents(batch, torch.Generator().manual_seed(batch)), torch.arange(batch)
        for name in ("ujd", "sequential", "gs-jacobi", "frontier"):
            build_decoder(name).decode(flow, latents, labels)
        assert counted.frame_count == 2, number  # before attention, and after it


def test_samples_and_gradients_are_the_same(counted, monkeypatch):
    flow = coupled_tarflow(num_classes=10)
    latents, labels = flow.sample_latents(3, torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3])
    images = torch.rand(3, *flow.image_shape, requires_grad=True)

    def outcome():
        decoded = [build_decoder(name).decode(flow, latents, labels).tokens for name in ("sejd", "gs-jacobi")]
        encoded, logdet = flow.encode(images, labels)
        (gradient,) = torch.autograd.grad(encoded.square().sum() - logdet.sum(), images)
        return [*decoded, gradient]

    found = outcome()
    assert counted.frame_count
    monkeypatch.undo()
    torch.testing.assert_close(found, outcome(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("window", "start"), [(3, 4), (1, 7), (5, 5)])
def test_the_bias_that_is_said_is_the_mask_that_is_made(window, start):
    """On CUDA a window on a prefix is told to the fused kernel, elsewhere it has a mask."""
    said = _window_mask(window, start, torch.device("cuda"))
    assert type(said) is type(causal_lower_right(window, start + window))
    q, k, v = (torch.rand(2, 2, length, 8) for length in (window, start + window, start + window))
    mask = _window_mask(window, start, torch.device("cpu"))
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(q, k, v, attn_mask=said), attend(q, k, v, attn_mask=mask))
