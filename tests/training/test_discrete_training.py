"""Training of discrete tokens: the same file from the same seed, exact bits per dimension, and what is shipped."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from harness.datasets import load_dataset
from harness.decoders import build_decoder
from harness.flows import load_flow
from harness.flows.checkpoints import ASSETS, read_metadata
from harness.training.config import DiscreteTraining, read_config
from harness.training.likelihood import Splits
from harness.training.loop import train
from harness.training.targets import target_of
from harness.training.targets.discrete import DiscreteTarget

SHORT = {"channels": 32, "layers": 1, "steps": 4, "batch_size": 8, "warmup": 2, "threads": 1, "evaluate_every": 2}


def configured(**changes):
    return DiscreteTraining.model_validate(SHORT | {"dataset": "digits", "held_out": 20} | changes)


def run(folder, **changes):
    decode = build_decoder("sequential").decode
    return train("tiny", configured(**changes), folder, decode=decode, command="harness train tiny.toml")


def test_the_same_seed_gives_the_same_file_and_another_another(tmp_path):
    files = [run(tmp_path / str(i), seed=seed) / "tiny.safetensors" for i, seed in enumerate((0, 0, 1))]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


@pytest.mark.parametrize("conditional", [True, False])
def test_a_released_model_is_the_one_that_was_judged(tmp_path, conditional):
    release = run(tmp_path, conditional=conditional)
    flow = load_flow(release / "tiny.safetensors")
    assert flow.num_classes == 10 * conditional and flow.image_shape == (1, 8, 8) and flow.num_tokens == 65
    with safe_open(release / "tiny.safetensors", "pt") as file:
        facts = file.metadata()
    assert "sigma" not in facts and facts["dataset"] == "digits"
    assert f"held-out bits/dim | {facts['held_out_bits_per_dim']} on 20 images" in (release / "tiny.md").read_text()
    assert (release / "tiny.png").is_file()


def test_a_card_says_how_many_images_were_left_out():
    config = configured()
    target = DiscreteTarget(config, replace(Splits.load(config, "digits", None, None, False), skipped=3))
    rows = target.card_rows(target.network(), 1.0, build_decoder("sequential").decode)
    assert dict(rows)["corrupt images left out"] == "3"


def test_an_untrained_network_codes_pixels_by_how_often_their_levels_are_seen():
    target = target_of(configured(held_out=None))
    pixels, levels = target.splits.train.scaled(), target.splits.levels
    held_out = target.splits.held_out.scaled()
    bits = 0.0
    for level in levels:
        share = ((pixels - level).abs() < 1e-3).double().sum(0) + 1
        bits -= ((held_out - level).abs() < 1e-3).double().mul((share / (len(pixels) + 17)).log2()).sum()
    network = target.network()
    torch.nn.init.zeros_(network.layer.proj_out.bias)  # what is left is the unigrams
    assert target.evaluate(network) == pytest.approx(float(bits) / held_out.numel(), abs=1e-5)


def test_distorted_pixels_are_read_at_their_nearest_level():
    target = target_of(configured(jitter=1.0))
    images, labels = target.batch(0)
    network = target.network()
    nearest = target.splits.levels[(images[..., None] - target.splits.levels).abs().argmin(-1)]
    assert not torch.equal(images, nearest)
    assert torch.equal(target.loss(network, images, labels), target.loss(network, nearest, labels))


def test_the_shipped_model_has_the_bits_per_dim_it_states_and_is_small():
    _, config = read_config("discrete-digits")
    path = ASSETS / "discrete-digits.safetensors"
    stated = float(read_metadata(path)["held_out_bits_per_dim"])
    target = DiscreteTarget(config, Splits.load(config, "digits", None, None, False))
    assert target.evaluate(load_flow("discrete-digits")) == pytest.approx(stated, abs=1e-3)
    assert path.stat().st_size < 1e6


def test_the_shipped_models_samples_are_sequentials_and_of_the_digits_levels():
    flow = load_flow("discrete-digits")
    latents, labels = flow.sample_latents(16, torch.Generator().manual_seed(0)), torch.arange(16) % 10
    exact = build_decoder("sequential").decode(flow, latents, labels)
    for given in (labels, None):
        exact = build_decoder("sequential").decode(flow, latents, given)
        found = build_decoder("ujd", tau=0.0).decode(flow, latents, given)
        assert torch.equal(found.tokens, exact.tokens)
    assert set(found.images.unique().tolist()) <= set(flow.levels.tolist())
    real = load_dataset("digits", "test").scaled()
    assert math.isclose(float(found.images.mean()), float(real.mean()), abs_tol=0.15)
