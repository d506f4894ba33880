"""Training of masked flows: the same file from the same seed, a resume that changes nothing, and what is shipped."""

import csv
import json

import pytest
import torch
from safetensors import safe_open

from harness.decoders import build_decoder
from harness.errors import HarnessError
from harness.flows import load_flow
from harness.flows.checkpoints import ASSETS
from harness.flows.ising import Ising
from harness.training.config import MafTraining, read_config
from harness.training.loop import train
from harness.training.targets import target_of
from harness.training.targets.ising import IsingTarget

zuko = pytest.importorskip("zuko", reason="the optional extra zuko is not installed")

SHORT = {"transforms": 2, "steps": 4, "batch_size": 8, "warmup": 2, "threads": 1, "evaluate_every": 2}
TARGETS = {
    "ising": {"ising": {"side": 3, "temperature": 3.0}, "hidden": (16,)},
    "digits": {"dataset": "binary-digits", "hidden": (64,), "held_out": 20},
    "table": {"dataset": "breast-cancer", "hidden": (32,), "sigma": 0.05},
}


def run(folder, target, resume=False, **changes):
    config = MafTraining.model_validate(SHORT | TARGETS[target] | changes)
    decode = build_decoder("sequential").decode
    return train("tiny", config, folder, decode=decode, command="harness train tiny.toml", resume=resume)


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


def test_the_same_seed_gives_the_same_file_and_another_another(target, tmp_path):
    files = [run(tmp_path / str(i), target, seed=seed) / "tiny.safetensors" for i, seed in enumerate((0, 0, 1))]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_a_run_that_was_interrupted_ends_in_the_same_weights(target, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", target, checkpoint_every=2)

    class Killed(Exception):
        pass

    kind = type(target_of(MafTraining.model_validate(SHORT | TARGETS[target])))
    draw = kind.batch

    def batch(self, step):
        if step == 3:
            raise Killed
        return draw(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "batch", batch)
        with pytest.raises(Killed):
            run(tmp_path / "cut", target, checkpoint_every=2)
    cut = run(tmp_path / "cut", target, resume=True, checkpoint_every=2)
    assert (cut / "tiny.safetensors").read_bytes() == (whole / "tiny.safetensors").read_bytes()
    with (tmp_path / "cut" / "curve.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


def test_another_training_is_not_continued(tmp_path):
    run(tmp_path, "ising")
    with pytest.raises(HarnessError, match="holds a run already"):
        run(tmp_path, "ising")
    with pytest.raises(HarnessError, match="hidden"):
        run(tmp_path, "ising", resume=True, hidden=(32,))


def test_a_released_flow_is_the_one_that_was_judged(target, tmp_path):
    release = run(tmp_path, target)
    flow = load_flow(release / "tiny.safetensors")
    with safe_open(release / "tiny.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["zuko"])
    card = (release / "tiny.md").read_text()
    if target == "ising":
        assert (flow.image_shape, flow.target) == (None, Ising(3, 3.0))
        assert f"reverse KL | {facts['reverse_kl_nats']:.3f} nats" in card
        assert facts["reverse_kl_nats"] > 0
        assert not (release / "tiny.png").exists()
    elif target == "table":
        assert (flow.image_shape, flow.target, flow.num_tokens) == (None, None, 30)
        assert f"held-out nats per feature | {facts['held_out_nats']:.4f} on 113 rows" in card
    else:
        assert (flow.image_shape, flow.target) == ((1, 8, 8), None)
        assert f"held-out bits/dim | {facts['held_out_bits_per_dim']:.4f}" in card
        samples = build_decoder("ujd").decode(flow, flow.sample_latents(2))
        assert torch.equal(samples.images.flatten(1), samples.tokens.flatten(1))
        assert (release / "tiny.png").is_file()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('family = "maf"\nsteps = 200\nbatch_size = 2', "either dataset"),
        ('family = "maf"\nsteps = 200\nbatch_size = 2\nising = { side = 2, temperature = 3.0 }', "ising.side"),
        ('family = "maf"\nsteps = 200\nbatch_size = 2\npatch = 2\ndataset = "digits"', "unknown key 'patch'"),
        ('family = "glow"\nsteps = 200\nbatch_size = 2', "unknown family 'glow'"),
    ],
)
def test_a_wrong_configuration_is_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(HarnessError, match=sentence):
        read_config(str(path))


def test_a_network_too_narrow_for_its_features_is_refused(tmp_path):
    with pytest.raises(HarnessError, match="8 units or more"):
        run(tmp_path, "ising", hidden=(7,))


@pytest.mark.parametrize("name", ["ising", "maf-digits"])
def test_shipped_flows_are_those_of_their_configurations(name):
    _, config = read_config(name)
    flow = load_flow(name)
    assert (flow.num_tokens, flow.num_layers) == (64, config.transforms) == (64, 8)
    with safe_open(ASSETS / f"{name}.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["zuko"])
    assert MafTraining.model_validate(facts["config"]) == config.model_copy(update={"remark": ""})
    assert facts["command"] == f"harness train {name}"
    assert (ASSETS / f"{name}.safetensors").stat().st_size < 1.5e6


def test_the_ising_flow_has_the_divergence_and_the_observables_that_it_states():
    flow, count = load_flow("ising"), 2000
    latents = flow.sample_latents(count, torch.Generator().manual_seed(5))
    fields = build_decoder("sequential").decode(flow, latents).tokens
    encoded, logdet = flow.encode(fields)
    origin = flow.scale_latents(torch.zeros_like(latents[:1]))
    log_scale = (flow.scale_latents(torch.ones_like(latents[:1])) - origin).log().sum()
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(latents[..., 0]).sum(dim=1)
    log_q = normal - log_scale + 64 * logdet
    divergence = log_q - flow.target.log_density(fields[..., 0]) + flow.target.log_integral
    with safe_open(ASSETS / "ising.safetensors", "pt") as file:
        stated = json.loads(file.metadata()["zuko"])["reverse_kl_nats"]
    assert float(divergence.mean()) == pytest.approx(stated, abs=4 * float(divergence.std()) / count**0.5)
    observed = flow.target.measure(fields[..., 0], torch.Generator().manual_seed(6))
    for name, values in observed.items():
        exact, apart = flow.target.exact[name], flow.target.independent()[name]
        assert abs(float(values.mean()) - exact) < 0.15 * abs(exact - apart), name


def test_untrained_the_divergence_is_far_from_zero():
    config = MafTraining.model_validate(SHORT | TARGETS["ising"])
    maf = zuko.flows.MAF(features=9, transforms=2, hidden_features=(16,))
    assert IsingTarget(config).evaluate(maf) > 1


def test_snapshots_are_kept_and_stated(tmp_path):
    release = run(tmp_path, "digits", snapshots=[0.5], evaluate_every=2)
    with safe_open(release / "tiny-50pct.safetensors", "pt") as file:
        early = file.metadata()
    assert early["step"] == "2"
    line = f"`tiny-50pct`: the averaged weights after 2 steps, {early['held_out_bits_per_dim']} held-out bits/dim"
    assert line in (release / "tiny.md").read_text()


def test_only_images_can_be_corrupt():
    with pytest.raises(HarnessError, match="no corrupt ones to skip"):
        target_of(MafTraining.model_validate(SHORT | TARGETS["ising"]), skip_corrupt=True)


def test_the_shipped_table_is_known_and_its_configuration_learns_it(tmp_path):
    _, config = read_config("maf-breast-cancer", steps=200)
    target = target_of(config)
    flow = load_flow("maf-breast-cancer")
    assert (flow.num_tokens, flow.num_layers) == (30, config.transforms) == (30, 5)
    assert target.nats(flow) < 0.1  # nats a feature; a standard normal has 1.42
    decode = build_decoder("sequential").decode
    release = train("mine", config, tmp_path, decode, "harness train maf-breast-cancer --steps 200")
    with safe_open(release / "mine.safetensors", "pt") as file:
        stated = json.loads(file.metadata()["zuko"])["held_out_nats"]
    assert stated == pytest.approx(target.nats(load_flow(release / "mine.safetensors")), abs=1e-4)
    assert stated < 1
