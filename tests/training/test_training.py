"""Training: the likelihood it reports, the batches it draws, the curve it resumes, and what it releases."""

import csv
import errno
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from harness.cli import app
from harness.datasets import Images, load_dataset, to_unit
from harness.decoders import build_decoder
from harness.errors import CheckpointError, HarnessError, StoreError
from harness.files import locked
from harness.flows import load_flow
from harness.flows.checkpoints import ASSETS
from harness.flows.tarflow import TarFlow, TarFlowConfig
from harness.metrics.likelihood import bits_per_dim, log_density, log_noise_mass
from harness.training.config import ImageTraining, TarFlowTraining, read_config, shipped_configs
from harness.training.data import Batches, distort
from harness.training.folder import TrainingFolder
from harness.training.likelihood import Splits
from harness.training.loop import train
from harness.training.targets.tarflow import TarFlowTarget

TINY = {
    "dataset": "digits",
    "jitter": 0.5,
    "sigma": 0.1,
    "patch": 4,
    "channels": 64,
    "blocks": 2,
    "layers": 1,
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup": 2,
    "threads": 1,
    "held_out": 16,
    "evaluate_every": 3,
    "checkpoint_every": 2,
}


def run(folder: Path, name: str = "tiny", resume: bool = False, **changes: object) -> Path:
    config = TarFlowTraining.model_validate(TINY | changes)
    return train(name, config, folder, build_decoder("sequential").decode, "harness train tiny.toml", resume=resume)


def target(images: Images, **changes: object) -> TarFlowTarget:
    config = TarFlowTraining.model_validate(TINY | changes)
    return TarFlowTarget(config, Splits.of(images, images, config))


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in curve(folder)]


def tensors(release: Path, name: str = "tiny") -> dict[str, torch.Tensor]:
    with safe_open(release / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


def small_flow(**changes: object) -> TarFlow:
    shape = {"image_channels": 1, "image_size": 4, "patch": 2, "channels": 64, "blocks": 3, "layers_per_block": 1}
    flow = TarFlow(TarFlowConfig(**(shape | changes)))
    for block in flow.blocks:
        torch.nn.init.normal_(block.proj_out.weight, std=0.05)
    return flow.eval().requires_grad_(False)


# Likelihood.


def test_log_density_is_the_change_of_variables() -> None:
    flow = small_flow().double()
    flow.var.uniform_(0.5, 2.0)
    image = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.encode(x)[0], image).reshape(16, 16)
    latents = flow.encode(image)[0]
    prior = torch.distributions.Normal(0.0, flow.var.sqrt()).log_prob(latents[0]).sum()
    expected = (prior + torch.linalg.slogdet(jacobian).logabsdet) / 16
    assert float(log_density(flow, image, None)) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_bits_per_dim_bound_the_discrete_likelihood(noise: str) -> None:
    """One-pixel images of three levels under N(0, 1): the model's probabilities by quadrature."""
    config = TarFlowTraining.model_validate(TINY | {"noise": noise, "sigma": 0.6})
    levels = torch.tensor([-1.0, 0.0, 1.0])
    v = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    if noise == "gaussian":
        q = torch.distributions.Normal(levels[:, None].double(), 0.6).log_prob(v).exp()
    else:
        q = ((v - levels[:, None].double()).abs() <= 0.6).double() / 1.2
    prior = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0).log_prob(v).exp()
    step = 16 / 160_000
    inside = q.sum(dim=0) > 0
    probability = (prior * q / q.sum(dim=0).clamp(min=1e-300)).sum(dim=1) * step
    assert float(probability.sum()) == pytest.approx(float((prior * inside).sum() * step), abs=1e-6)

    mass = log_noise_mass(v[:, None, None, None].float(), levels, config)
    for level in range(3):
        weight = q[level] * step
        bound = ((mass - prior.log()) * weight).nan_to_num(0.0, 0.0, 0.0).sum()
        exact = -probability[level].log()
        assert exact - 1e-6 <= bound
        assert bound < exact + 0.5  # and no looser than the noise makes it


def test_uniform_noise_as_wide_as_the_spacing_is_plain_dequantisation() -> None:
    config = TarFlowTraining.model_validate(TINY | {"noise": "uniform", "sigma": 1 / 255})
    levels = to_unit(torch.arange(256, dtype=torch.uint8))
    noisy = levels[torch.randint(256, (5, 1, 4, 4))] + (torch.rand(5, 1, 4, 4) - 0.5) * 1.98 / 255
    assert log_noise_mass(noisy, levels, config) == pytest.approx(torch.full((5,), math.log(255 / 2)).numpy())


@pytest.mark.parametrize(("noise", "sigma", "expected"), [("uniform", 1 / 255, 0.0), ("gaussian", 0.05, 4.69)])
def test_noise_has_a_cost_of_its_own(noise: str, sigma: float, expected: float) -> None:
    """Gaussian: log2 of (sigma * sqrt(2 pi e)) over the spacing 2 / 255, as all levels here are far from the ends."""
    config = TarFlowTraining.model_validate(TINY | {"noise": noise, "sigma": sigma})
    images = Images(torch.randint(80, 176, (20, 1, 8, 8), dtype=torch.uint8))
    splits = Splits(images, images, to_unit(torch.arange(256, dtype=torch.uint8)), config)
    if noise == "gaussian":
        assert expected == pytest.approx(math.log2(sigma * math.sqrt(2 * math.pi * math.e) * 127.5), abs=0.05)
    assert splits.noise_bits_per_dim() == pytest.approx(expected, abs=0.05)


def test_bits_per_dim_do_not_depend_on_the_batch_size() -> None:
    config = TarFlowTraining.model_validate(TINY)
    images = Images(torch.randint(0, 256, (7, 1, 4, 4), dtype=torch.uint8))
    levels = to_unit(torch.arange(256, dtype=torch.uint8))
    flow = small_flow()
    assert bits_per_dim(flow, images, levels, config, 2) == pytest.approx(
        bits_per_dim(flow, images, levels, config, 7), rel=1e-6
    )


def test_bits_per_dim_are_the_mean_of_several_draws_of_noise() -> None:
    images = Images(torch.randint(0, 256, (7, 1, 4, 4), dtype=torch.uint8))
    levels, flow = to_unit(torch.arange(256, dtype=torch.uint8)), small_flow()

    def spread(draws: int) -> float:
        configs = (TarFlowTraining.model_validate(TINY | {"seed": seed}) for seed in range(24))
        return float(
            torch.tensor([bits_per_dim(flow, images, levels, config, draws=draws) for config in configs]).std()
        )

    assert spread(4) < 0.7 * spread(1), "half as much, by the square root of four"


# Batches.


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order() -> None:
    pixels = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 8, 8) * 20
    learned = target(Images(pixels, torch.arange(10)), batch_size=4, label_drop=0.0, jitter=0.0)
    shown = torch.cat([learned.batch(step)[1] for step in range(5)])
    assert sorted(shown[:10].tolist()) == list(range(10)) == sorted(shown[10:].tolist())
    assert shown[:10].tolist() != shown[10:].tolist()


def test_processes_share_a_batch_between_them() -> None:
    draw = target(load_dataset("digits", "train"), flip=True).batch
    whole, labels = draw(3)
    parts = [Batches(draw, rank, 2)[3] for rank in range(2)]
    assert torch.equal(torch.stack([part[0] for part in parts], dim=1).flatten(0, 1), whole)
    assert torch.equal(torch.stack([part[1] for part in parts], dim=1).flatten(), labels)


def test_labels_are_dropped_at_the_stated_rate_and_images_mirrored_half_the_time() -> None:
    pixels = torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    pixels[..., 0] = 255
    images = Images(pixels, torch.ones(2000, dtype=torch.int64))
    batch, labels = target(images, batch_size=2000, jitter=0.0, flip=True, label_drop=0.25, sigma=1e-3).batch(0)
    assert float((labels == -1).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert float((batch[:, 0, 0, 7] > 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float((batch - batch.round()).std()) == pytest.approx(1e-3, rel=0.05)


def test_distortion_is_small_and_none_at_strength_zero() -> None:
    images = load_dataset("digits", "train").scaled(slice(64))
    assert torch.allclose(distort(images, 0.0, torch.Generator()), images, atol=1e-5)
    distorted = distort(images, 0.5, torch.Generator())
    assert 0.01 < float((distorted - images).square().mean()) < 0.2


# The run.


def test_killed_and_resumed_training_has_the_undisturbed_curve(tmp_path: Path) -> None:
    """kill -9 somewhere between two checkpoints: the next steps, and the weights, are as if nothing had happened."""
    file = tmp_path / "tiny.toml"
    changes = {"steps": 160, "evaluate_every": 160, "checkpoint_every": 20}
    file.write_text("\n".join(f"{key} = {value!r}" for key, value in (TINY | changes).items()))
    run(tmp_path / "whole", **changes)

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "harness.cli", "train", str(file), "--out", str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and (not (killed / "curve.csv").exists() or len(curve(killed)) < 30):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = torch.load(killed / "checkpoint.pt", weights_only=True)["step"]
    assert 20 <= done <= 110

    resumed = CliRunner().invoke(app, ["train", str(file), "--out", str(killed), "--resume"], standalone_mode=False)
    assert resumed.exception is None, resumed.output
    assert [int(row["step"]) for row in curve(killed)] == list(range(1, 161))
    assert losses(killed)[done : done + 50] == pytest.approx(losses(tmp_path / "whole")[done : done + 50], abs=1e-4)
    whole, resumed = tensors(tmp_path / "whole" / "release"), tensors(killed / "release")
    for key, tensor in whole.items():
        assert torch.allclose(tensor, resumed[key], atol=1e-4), key


def test_a_seed_determines_the_flow(tmp_path: Path) -> None:
    first, again, other = (run(tmp_path / f"{i}", seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert losses(first.parent) == losses(again.parent) != losses(other.parent)
    assert (first / "tiny.safetensors").read_bytes() == (again / "tiny.safetensors").read_bytes()
    assert not torch.equal(tensors(first)["blocks.0.pos_embed"], tensors(other)["blocks.0.pos_embed"])


def test_training_lowers_the_loss_and_the_held_out_bits(tmp_path: Path) -> None:
    run(tmp_path, steps=60, batch_size=16, evaluate_every=20)
    held_out = [float(row["held_out_bits_per_dim"]) for row in curve(tmp_path) if row["held_out_bits_per_dim"]]
    assert held_out == sorted(held_out, reverse=True) and len(held_out) == 3
    assert sum(losses(tmp_path)[-10:]) < sum(losses(tmp_path)[:10])


def test_release_holds_weights_card_samples_and_snapshots(tmp_path: Path) -> None:
    release = run(tmp_path, snapshots=[0.2, 0.5], storage="float16", remark="Blurs.", seed=5)
    assert sorted(path.name for path in release.iterdir()) == sorted(
        ["tiny.md", *(f"tiny{part}.{kind}" for part in ("", "-20pct", "-50pct") for kind in ("safetensors", "png"))]
    )
    assert {tensor.dtype for tensor in tensors(release).values()} == {torch.float16}
    flow = load_flow(release / "tiny.safetensors")
    assert next(flow.parameters()).dtype == torch.float32
    assert (flow.num_tokens, flow.token_dim, flow.num_layers, flow.num_classes) == (4, 16, 2, 10)

    with safe_open(release / "tiny.safetensors", framework="pt") as file:
        metadata = file.metadata()
    config = TarFlowTraining.model_validate_json(metadata["config"])
    splits = Splits.of(load_dataset("digits", "train"), load_dataset("digits", "test"), config)
    assert metadata["held_out_bits_per_dim"] == f"{splits.held_out_bits_per_dim(flow):.4f}"
    assert (metadata["dataset"], metadata["seed"], metadata["sigma"]) == ("digits", "5", "0.1")
    card = (release / "tiny.md").read_text()
    for said in (metadata["held_out_bits_per_dim"], "harness train tiny.toml", "| seed | 5 |", "Blurs.", "float16"):
        assert said in card
    with safe_open(release / "tiny-20pct.safetensors", framework="pt") as file:
        early = file.metadata()
    assert early["step"] == "2"
    assert (
        f"`tiny-20pct`: the averaged weights after 2 steps, {early['held_out_bits_per_dim']} held-out bits/dim" in card
    )


def test_a_finished_run_is_released_again_with_a_new_remark(tmp_path: Path) -> None:
    before = tensors(run(tmp_path))
    after = run(tmp_path, resume=True, remark="They read as digits.")
    assert "They read as digits." in (after / "tiny.md").read_text()
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors(after).items())


def test_volume_preserving_flows_learn_their_prior(tmp_path: Path) -> None:
    state = tensors(run(tmp_path, volume_preserving=True, steps=20))
    assert state["blocks.0.proj_out.weight"].shape[0] == 16
    assert not torch.equal(state["var"], torch.ones_like(state["var"]))


def test_learning_rate_rises_then_falls_to_zero() -> None:
    config = TarFlowTraining.model_validate(TINY | {"steps": 100, "warmup": 10})
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert max(rates) == rates[9] == config.learning_rate
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert config.learning_rate_at(100) == pytest.approx(0)


def test_the_number_of_steps_may_change_while_the_rate_is_constant() -> None:
    def plan(**changes: object) -> TarFlowTraining:
        return TarFlowTraining.model_validate(TINY | {"steps": 100, "warmup": 10, "decay": 0.2} | changes)

    assert {plan().learning_rate_at(step) for step in range(9, 82)} == {1e-3}
    assert plan().learning_rate_at(83) < 1e-3
    assert plan().difference(plan(steps=200), done=80) is None
    assert plan().difference(plan(steps=200), done=90) == "steps"
    assert plan(decay=1.0).difference(plan(decay=1.0, steps=200), done=20) == "steps"
    assert plan(snapshots=[0.1]).difference(plan(snapshots=[0.1], steps=200), done=15) == "steps"
    assert plan().difference(plan(seed=1), done=0) == "seed"
    assert plan().difference(plan(threads=4, remark="?"), done=50) is None


def test_compiled_layers_learn_the_same(tmp_path: Path, monkeypatch) -> None:
    """What a GPU trains with; compiled here by a backend that needs no compiler."""
    compiled = pytest.importorskip("harness.flows.compiled")
    run(tmp_path / "plain")
    monkeypatch.setattr(compiled, "compiles", lambda device: True)
    monkeypatch.setattr(compiled, "compiled", lambda function: torch.compile(function, backend="aot_eager"))
    run(tmp_path / "compiled")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)


def test_a_card_states_images_per_second(tmp_path: Path) -> None:
    card = (run(tmp_path) / "tiny.md").read_text(encoding="utf-8")
    seconds = sorted(float(row["wall_s"]) for row in curve(tmp_path))
    assert f"| images per second | {4 / ((seconds[2] + seconds[3]) / 2):,.0f}, by the median of its steps |" in card


def test_images_are_kept_where_they_fit(monkeypatch) -> None:
    images = Images(torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8), torch.arange(8) % 3)
    kept, wanted = target(images), target(images)
    assert kept.place(torch.device("cpu")).type == "cpu"
    for mine, theirs in zip(kept.batch(3), wanted.batch(3), strict=True):
        assert torch.equal(mine, theirs)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 80 * 2**30))
    # of a card there is none here: it is not asked for
    assert kept.place(torch.device("cuda")).type == "cpu" and kept.train.pixels.device.type == "cpu"


def test_the_configuration_of_the_papers_shape_is_shipped() -> None:
    _, config = read_config("cifar10-paper")
    assert isinstance(config, TarFlowTraining)
    assert (config.patch, config.channels, config.blocks, config.depths) == (2, 256, 6, (6,) * 6)
    assert config.learning_rate_at(299 + int(0.3 * 1942)) == 8e-4 > config.learning_rate_at(1000)


@pytest.mark.slow
def test_two_processes_have_the_curve_of_one(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text("\n".join(f"{key} = {value!r}" for key, value in TINY.items()))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = [*launch, "--module", "harness.cli", "train", str(file), "--out", str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    run(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


# Bad input.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": 3}, "unknown key 'step'; did you mean 'steps'?"),
        ({"steps": -1}, "steps: input should be greater than or equal to 1, not -1"),
        ({"steps": 1}, r"warmup \(2\) is longer than the training"),
        ({"sigma": 0.0}, "sigma: input should be greater than 0"),
        ({"learning_rate": "fast"}, "learning_rate: input should be a valid number"),
        ({"noise": "salt"}, "noise: input should be 'gaussian' or 'uniform', not 'salt'"),
        ({"learning_rate": math.inf}, "learning_rate: input should be a finite number"),
        ({"seed": 2**63}, "seed: input should be less than"),
        ({"snapshots": [0.5, 0.5]}, r"snapshots \(0.5, 0.5\) of one name would replace each other"),
        ({"snapshots": [2.0]}, "snapshots.0: input should be less than 1, not 2.0"),
    ],
)
def test_a_wrong_configuration_is_a_sentence(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("\n".join(f"{key} = {value!r}" for key, value in (TINY | changes).items()))
    with pytest.raises(HarnessError, match=said) as error:
        read_config(str(file))
    assert "\n" not in str(error.value)


def test_the_command_line_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.cli", "train", "digits", "--steps", "-5", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "not -5" in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_is_no_configuration_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="did you mean 'digits'"):
        read_config("digit")
    with pytest.raises(HarnessError, match="there is no training configuration at"):
        read_config(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(HarnessError, match="cannot be read as TOML"):
        read_config(str(tmp_path / "bad.toml"))
    (tmp_path / "short.toml").write_text("dataset = 'digits'")
    with pytest.raises(HarnessError, match="steps: field required"):
        read_config(str(tmp_path / "short.toml"))


def test_shapes_that_fit_nothing_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="image size 8 is not a multiple of the patch size 3"):
        run(tmp_path, patch=3)
    with pytest.raises(HarnessError, match="100 channels are not a multiple"):
        run(tmp_path, channels=100)


def test_another_run_is_neither_overwritten_nor_continued(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "curve.csv").read_bytes()
    with pytest.raises(HarnessError, match="holds a run already; --resume continues it"):
        run(tmp_path)
    with pytest.raises(HarnessError, match="has sigma = 0.1, not 0.2"):
        run(tmp_path, resume=True, sigma=0.2)
    assert (tmp_path / "curve.csv").read_bytes() == before
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as the state of a training"):
        run(tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"the loss of step \d+ is (nan|inf)"):
        run(tmp_path, learning_rate=1e30, grad_clip=1e30, warmup=1, steps=20)


def test_an_unwritable_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to"):
        run(tmp_path / "file" / "run")


def test_a_full_disk_is_a_sentence_and_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, checkpoint_every=100)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"cannot write to '.*checkpoint.pt': No space left"):
        TrainingFolder(tmp_path, "bits").save({"step": 3})
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path, "trains in"), pytest.raises(StoreError, match="another process trains in"):
        run(tmp_path)
    run(tmp_path)


def test_a_run_is_not_continued_on_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)

    def darker(*arguments: object) -> Images:
        images = load_dataset(*arguments)
        return replace(images, pixels=images.pixels // 2)

    monkeypatch.setattr("harness.training.likelihood.load_dataset", darker)
    with pytest.raises(HarnessError, match="was trained on other data: SHA-256 64230df7cf272019, not"):
        run(tmp_path, resume=True)


def test_a_finished_run_that_is_resumed_shows_no_loss_that_was_not_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    assert "loss" in capsys.readouterr().err
    run(tmp_path, resume=True)
    assert "nan" not in capsys.readouterr().err


def test_a_resume_waits_for_nobody_either(tmp_path: Path) -> None:
    run(tmp_path)
    with locked(tmp_path, "trains in"), pytest.raises(StoreError, match="another process trains in"):
        run(tmp_path, resume=True)


def test_a_run_is_not_continued_where_other_images_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)

    def darker(name: str, split: str, *more: object) -> Images:
        images = load_dataset(name, split, *more)
        return replace(images, pixels=images.pixels // 2) if split == "test" else images

    monkeypatch.setattr("harness.training.likelihood.load_dataset", darker)
    with pytest.raises(HarnessError, match="was judged on other data: SHA-256"):
        run(tmp_path, resume=True)


BLACK = Images(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2)


@pytest.mark.parametrize(
    ("train", "test", "changes", "said"),
    [
        (BLACK, replace(BLACK, labels=torch.arange(8) % 3), {}, "images of class 2 .*, which the train split has not"),
        (replace(BLACK, labels=torch.arange(8) % 2 * 2), BLACK, {}, "images of class 1 "),
        (BLACK, BLACK, {"batch_size": 9}, "batch_size = 9 is more than the 8 rows"),
        (BLACK, BLACK, {"patch": 16}, "image size 8 is not a multiple of the patch size 16"),
        (BLACK, replace(BLACK, pixels=torch.arange(3)[:, None, None].expand(8, 3, 8, 8).byte()), {}, "the test split"),
        (BLACK, replace(BLACK, pixels=torch.zeros(8, 1, 4, 4, dtype=torch.uint8)), {}, "the test split"),
        (replace(BLACK, pixels=torch.zeros(8, 1, 8, 4, dtype=torch.uint8)),) * 2 + ({}, "TarFlow needs squares"),
    ],
)
def test_what_can_be_known_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Images, test: Images, changes: dict[str, object], said: str
) -> None:
    images = {"train": train, "test": test}
    monkeypatch.setattr("harness.training.likelihood.load_dataset", lambda name, split, *more: images[split])
    with pytest.raises(HarnessError, match=said):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_class_of_the_test_split_alone_is_no_matter_without_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TarFlowTraining.model_validate(TINY | {"conditional": False})
    splits = Splits.of(BLACK, replace(BLACK, labels=torch.arange(8)), config)
    assert TarFlowTarget(config, splits).num_classes == 0


def test_what_was_released_is_not_replaced_by_another_training(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    for name in ("tiny.safetensors", "tiny-50pct.png", "tiny.md"):
        (tmp_path / "release" / name).write_text("theirs")
        with pytest.raises(StoreError, match=f"{name}' is there already"):
            run(tmp_path, snapshots=[0.5])
        (tmp_path / "release" / name).unlink()
    (tmp_path / "release" / "tiny.png").mkdir()
    with pytest.raises(StoreError, match="tiny.png' is there already"):
        run(tmp_path, resume=True)
    assert not (tmp_path / "curve.csv").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, data: bytes) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(StoreError, match=r"cannot write to '.*release': Permission denied"):
        run(tmp_path)
    assert not (tmp_path / "curve.csv").exists()


def test_a_device_that_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device(**options: object) -> None:
        raise RuntimeError("Invalid device string: 'foo'")

    monkeypatch.setattr("harness.training.loop.Accelerator", no_device)
    with pytest.raises(HarnessError, match="no device to train on: Invalid device string"):
        run(tmp_path)


@pytest.mark.parametrize("score", [math.inf, math.nan])
def test_a_flow_without_a_finite_measure_is_not_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    monkeypatch.setattr(Splits, "held_out_bits_per_dim", lambda self, flow: score)
    for resume in (False, True):
        with pytest.raises(HarnessError, match=f"the flow of step 6 has {score} held-out bits/dim, so 'tiny' is not"):
            run(tmp_path, resume=resume)
    assert list((tmp_path / "release").iterdir()) == []


class Spoiled(TarFlowTarget):
    """A target whose gradient, and not whose loss, is infinite in the steps that `spoils` names."""

    spoils: tuple[int, ...] = ()
    seen = 0

    def loss(self, network: TarFlow, *batch: torch.Tensor) -> torch.Tensor:
        type(self).seen += 1
        loss = super().loss(network, *batch)
        if self.seen in self.spoils:
            weight = next(network.parameters())
            loss = loss + (weight - weight.detach()).abs().sqrt().sum()  # 0, with an infinite slope there
        return loss


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> type[Spoiled]:
    monkeypatch.setattr("harness.training.targets.TarFlowTarget", Spoiled)
    monkeypatch.setattr(Spoiled, "seen", 0)
    return Spoiled


def test_a_gradient_that_is_not_finite_is_not_stepped_on_and_counted(
    tmp_path: Path, spoiled: type[Spoiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoiled, "spoils", (2, 5))
    release = run(tmp_path)
    assert [math.isfinite(float(row["grad_norm"])) for row in curve(tmp_path)] == [True, False, True, True, False, True]
    assert all(math.isfinite(loss) for loss in losses(tmp_path))
    assert all(tensor.isfinite().all() for tensor in tensors(release).values())
    assert "| steps left out, their gradient not finite | 2 |" in (release / "tiny.md").read_text()


def test_too_many_of_them_in_a_row_end_the_run(
    tmp_path: Path, spoiled: type[Spoiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoiled, "spoils", range(3, 99))
    with pytest.raises(HarnessError, match=r"the gradients of 10 steps up to step 12 are not finite; '.*point.pt'"):
        run(tmp_path, steps=20, checkpoint_every=2, evaluate_every=20)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["flow"].values())


def test_weights_that_are_not_finite_replace_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(optimizer: torch.optim.AdamW) -> None:
        optimizer.param_groups[0]["params"][0].data.fill_(math.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: spoil(self))
    with pytest.raises(HarnessError, match="the weights of step 1 are not finite; no state was saved yet"):
        run(tmp_path, checkpoint_every=1)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_disk_that_is_full_when_a_flow_is_released_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "tiny.safetensors" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"cannot write to '.*tiny.safetensors': No space left"):
        run(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", write)
    assert (run(tmp_path, resume=True) / "tiny.safetensors").is_file()


def test_a_state_or_a_curve_of_something_else_is_a_sentence(tmp_path: Path) -> None:
    run(tmp_path)
    lines = (tmp_path / "curve.csv").read_text().splitlines(keepends=True)
    (tmp_path / "curve.csv").write_text("".join(lines[:3]))
    with pytest.raises(CheckpointError, match="does not hold the 6 steps of the state beside it"):
        run(tmp_path, resume=True)
    (tmp_path / "curve.csv").write_bytes(b"step,loss\n\xff\xfe,1\n")
    with pytest.raises(CheckpointError, match="cannot be read as the curve"):
        run(tmp_path, resume=True)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["optimizer"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="is no state of this training: 'optimizer'"):
        run(tmp_path, resume=True)


# What is shipped.


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_flows_are_those_of_their_configurations(name: str) -> None:
    weights = ASSETS / f"{name}.safetensors"
    if not weights.exists():
        pytest.skip(f"'{name}' has no shipped weights")
    _, config = read_config(name)
    if not isinstance(config, ImageTraining):
        pytest.skip("of another family, whose tests are its own")
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    assert type(config).model_validate_json(metadata["config"]) == config.model_copy(update={"remark": ""})
    assert metadata["command"] == f"harness train {name}"
    assert metadata["step"] == str(config.steps)
    card = (ASSETS / f"{name}.md").read_text(encoding="utf-8")
    assert metadata["held_out_bits_per_dim"] in card and config.remark in card
    flow = load_flow(name)
    assert flow.num_layers == (config.blocks if isinstance(config, TarFlowTraining) else 1)
    assert weights.stat().st_size <= (5e6 if name == "digits" else 20e6)


def test_the_digits_flow_has_the_bits_per_dim_it_states() -> None:
    _, config = read_config("digits")
    splits = Splits.of(load_dataset("digits", "train"), load_dataset("digits", "test"), config)
    with safe_open(ASSETS / "digits.safetensors", framework="pt") as file:
        stated = float(file.metadata()["held_out_bits_per_dim"])
    assert splits.held_out_bits_per_dim(load_flow("digits")) == pytest.approx(stated, abs=5e-3)  # of one draw
