import pytest
import torch

from harness.decoders import Guidance, build_decoder
from harness.errors import HarnessError
from harness.flows import load_flow
from harness.flows.checkpoints import training_noise
from harness.flows.latents import indexed_latents
from harness.measure.sampling import draw_samples, sample


@pytest.fixture(scope="module")
def flow(tiny_checkpoint):
    return load_flow(tiny_checkpoint)


def test_samples_do_not_depend_on_the_batch_size(flow):
    decoder = build_decoder("sequential")
    one, three = (draw_samples(flow, decoder, 7, seed=3, batch_size=size).images for size in (1, 3))
    assert torch.allclose(one, three, atol=1e-5) and one.shape == (7, 1, 8, 8)


def test_samples_are_those_of_the_indexed_latents_and_turning_labels(flow):
    decoder, guidance = build_decoder("ujd", tau=0.01), Guidance(0.5)
    drawn = draw_samples(flow, decoder, 5, seed=1, labels=[4, -1], guidance=guidance)
    wanted = decoder.decode(flow, indexed_latents(flow, 1, range(5)), torch.tensor([4, -1, 4, -1, 4]), guidance)
    assert torch.equal(drawn.images, wanted.images) and drawn.fpe == pytest.approx(wanted.fpe)


def test_denoising_changes_the_images_by_the_flows_own_step(flow):
    decoder = build_decoder("sequential")
    plain, clean = (draw_samples(flow, decoder, 3, labels=[2], denoise=sigma).images for sigma in (None, 0.3))
    assert torch.allclose(clean, flow.denoise(plain, 0.3, torch.full((3,), 2)), atol=1e-6)
    assert not torch.allclose(clean, plain)


def test_no_labels_to_take_turns(flow):
    with pytest.raises(HarnessError, match="labels"):
        draw_samples(flow, build_decoder("ujd"), 2, labels=[])


def test_the_training_noise_of_a_checkpoint(tmp_path):
    from safetensors.torch import save_file

    ours, published, silent = (tmp_path / f"{name}.safetensors" for name in ("a", "afhq_model_8_0.07", "b_c"))
    save_file({"x": torch.zeros(1)}, ours, {"sigma": "0.05"})
    for path in (published, silent):
        save_file({"x": torch.zeros(1)}, path)
    assert (training_noise(ours), training_noise(published)) == (0.05, 0.07)
    with pytest.raises(HarnessError, match="b_c"):
        training_noise(silent)


def test_samples_come_with_what_was_done(flow, tiny_checkpoint):
    drawn = sample(tiny_checkpoint, 5, "ujd tau=0.01", labels=torch.tensor([4, -1]), seed=1, batch_size=3)
    wanted = draw_samples(flow, build_decoder("ujd", tau=0.01), 5, seed=1, labels=[4, -1], batch_size=3)
    assert torch.equal(drawn.images, wanted.images)
    assert drawn.layers["layer"].tolist() == [1, 2] and set(drawn.layers["state"]) == {"converged"} == {drawn.state}
    assert drawn.layers["wall_s"].sum() <= drawn.wall_s
    assert repr(drawn).startswith("<5 samples of 1x8x8 by ujd in ") and repr(drawn).endswith("; converged>")
    assert "data:image/png;base64," in drawn._repr_html_() and "<table" in drawn._repr_html_()
    capped = sample(flow, 2, build_decoder("ujd", tau=1e-9, max_iterations=1, fallback="leave"), labels=3)
    assert capped.state == "not converged"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"count": 0}, "at least 1 sample"),
        ({"batch_size": 0}, "at least 1"),
        ({"labels": 0.5}, "whole numbers"),
        ({"labels": 12}, "label 12 is out of range"),
        ({"labels": []}, "none is given"),
        ({"decoder": "sejdd"}, "did you mean 'sejd'"),
    ],
)
def test_samples_that_cannot_be_drawn(flow, arguments, sentence):
    with pytest.raises(HarnessError, match=sentence):
        sample(flow, **{"count": 2, "decoder": "ujd"} | arguments)
