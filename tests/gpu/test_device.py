"""What a device decodes, measures, fits and trains: the same as a CPU does."""

import csv

import pytest
import torch

from harness.datasets import load_dataset
from harness.decoders import Guidance, build_decoder
from harness.decoders.calibration import Calibration
from harness.fitting import prepare
from harness.fitting.calibrate import calibrate
from harness.fitting.tune import Tuner, store_schedule
from harness.flows import load_flow
from harness.flows.precision import to_dtype
from harness.flows.synthetic import synthetic_config
from harness.flows.tarflow import TarFlow
from harness.measure.matrix import Matrix
from harness.measure.run_matrix import run_matrix
from harness.progress import SILENT
from harness.training.config import TarFlowTraining
from harness.training.data import Batches
from harness.training.likelihood import Splits
from harness.training.loop import train
from harness.training.targets.tarflow import TarFlowTarget

EXACT = {"tau": 0.0}
DECODERS = {
    "sequential": {},
    "uncached": {},
    "ujd": EXACT,
    "sejd": EXACT,
    "gs-jacobi": EXACT | {"blocks": 4},
    "frontier": EXACT | {"window": 5},
    "fitted": {"iterations": [3, 2]},
    "auto": {"budget": 0.5},
}
PLAIN = {"cuda_graphs": False}
LABELS = torch.tensor([0, 1, -1, 2])


def latents(flow, count=4):
    return flow.sample_latents(count, torch.Generator().manual_seed(0))


def on_cpu(tensor):
    return tensor.cpu().float()


@pytest.fixture(scope="module")
def fits():
    from harness.flows.coupled import coupled_tarflow

    return calibrate(coupled_tarflow(seed=4, num_classes=3), samples=64)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "captured"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gives_what_it_gives_on_the_cpu(name, plain, device, stand_in, make, fits, monkeypatch):
    monkeypatch.setattr("harness.fitting.tune.SAMPLES", 16)
    monkeypatch.setattr("harness.fitting.trials.MOST_ROUNDS", 5)
    here, there = make(), make(device)
    for flow in (here, there):
        flow.fits[Calibration] = fits.to(flow.device, flow.dtype)
    if name == "auto":
        schedule = Tuner(here, enough_s=0.0).schedule(4, 0.5)
        for flow in (here, there):
            flow.fits[type(schedule), 0.5] = {4: schedule}
    wanted = build_decoder(name, **DECODERS[name], **PLAIN).decode(here, latents(here), LABELS)
    decoder = build_decoder(name, **DECODERS[name], cuda_graphs=not plain)
    for _ in range(2):  # what was captured is replayed
        found = decoder.decode(there, latents(there), LABELS)
        torch.testing.assert_close(on_cpu(found.tokens), wanted.tokens, rtol=1e-4, atol=1e-4)
    assert [trace.iterations for trace in found.layers] == [trace.iterations for trace in wanted.layers]


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "captured"])
@pytest.mark.parametrize("name", ["sequential", "ujd"])
def test_in_half_precision_it_is_as_near_as_the_cpu_is(name, plain, device, stand_in, make):
    flow, half = make(), to_dtype(make(), device, torch.bfloat16)
    exact = build_decoder("sequential", **PLAIN).decode(flow, latents(flow), LABELS).tokens
    options = {} if name == "sequential" else EXACT
    found = build_decoder(name, **options, cuda_graphs=not plain).decode(half, latents(half), LABELS).tokens
    assert on_cpu(found).sub(exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


@pytest.mark.parametrize("name", ["sequential", "ujd", "gs-jacobi"])
def test_guidance_and_labels_follow_each_other(name, device, stand_in, make):
    here, there, options = make(), make(device), DECODERS[name]
    for labels in (LABELS, LABELS.flip(0)):
        for guidance in (None, Guidance(0.7), Guidance(0.5, annealed=True, temperature=1.5)):
            wanted = build_decoder(name, **options, **PLAIN).decode(here, latents(here), labels, guidance)
            found = build_decoder(name, **options).decode(there, latents(there), labels, guidance)
            torch.testing.assert_close(on_cpu(found.tokens), wanted.tokens, rtol=1e-4, atol=1e-4)


def test_two_batch_sizes_take_turns(device, stand_in, make):
    here, there = make(), make(device)
    for count in (2, 5, 2, 5):
        for name in ("sequential", "frontier"):
            decoders = [build_decoder(name, **DECODERS[name], **more) for more in (PLAIN, {})]
            wanted, found = (
                decoder.decode(flow, latents(flow, count)).tokens
                for decoder, flow in zip(decoders, (here, there), strict=True)
            )
            torch.testing.assert_close(on_cpu(found), wanted, rtol=1e-4, atol=1e-4)


def test_a_flow_that_went_away_and_came_back_is_decoded_as_before(device, stand_in, make):
    flow, decoder = make(device), build_decoder("sequential")
    before = decoder.decode(flow, latents(flow), LABELS).tokens
    flow.to("cpu", torch.float64).to(device, torch.float32)
    torch.testing.assert_close(decoder.decode(flow, latents(flow), LABELS).tokens, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sequential", "ujd"])
def test_a_bound_on_memory_changes_no_sample(name, device, make):
    here, there, options = make(), make(device), DECODERS[name]
    wanted = build_decoder(name, **options, **PLAIN).decode(here, latents(here, 16))
    found = build_decoder(name, **options, **PLAIN, max_memory="400KB").decode(there, latents(there, 16))
    torch.testing.assert_close(on_cpu(found.tokens), wanted.tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_graphs_take_little_memory_beside_weights_and_cache():
    """2-256-6-6 at batch 256: where each position was captured by itself it was 72 GB."""
    flow = to_dtype(TarFlow(synthetic_config("random:2-256-6-6@32")), "cuda", torch.bfloat16)
    cache = 6 * 2 * 256 * 256 * 256 * 2
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    build_decoder("sequential").decode(flow, latents(flow, 256))
    assert torch.cuda.memory_reserved() - before < 2e9 + cache


def test_every_pass_of_a_real_run(device, tiny_checkpoint, tmp_path):
    tables = {
        "name": "gpu",
        "device": device,
        "datasets": [{"name": "digits", "checkpoint": str(tiny_checkpoint)}],
        "decoders": [{"name": "sequential"}, {"name": "sejd"}],
        "grid": {"batch_sizes": [2]},
        "timing": {"rounds": 1},
        "quality": {"num_samples": 6},
    }
    run = run_matrix(Matrix.model_validate(tables), tmp_path / "run", SILENT)
    assert set(run.table("timings")["device"]) == {device}
    for name in ("timings", "quality", "memory"):
        assert set(run.table(name)["status"]) == {"ok"}, name
    assert (run.table("timings")["encode_s"] > 0).all() and len(run.table("layers")) and len(run.table("residuals"))
    assert all(("cuda" in method) == (device == "cuda") for method in run.table("memory")["method"])


def test_what_is_fitted_on_a_device_serves_it(device, stand_in, make, monkeypatch):
    monkeypatch.setattr("harness.fitting.tune.SAMPLES", 16)
    monkeypatch.setattr("harness.fitting.trials.MOST_ROUNDS", 5)
    flow, cpu = make(device), make()
    flow.fits[Calibration] = calibrate(flow, samples=64)
    guesses = [fits.layers[0].guess.bias for fits in (flow.fits[Calibration], calibrate(cpu, samples=64))]
    torch.testing.assert_close(on_cpu(guesses[0]), guesses[1], rtol=1e-2, atol=1e-3)
    tuner = Tuner(flow, enough_s=0.0)
    store_schedule(flow, tuner.schedule(4, 0.5))
    auto = build_decoder("auto", budget=0.5)
    assert not auto.missing(flow, 4)
    exact = build_decoder("sequential").decode(flow, latents(flow)).tokens
    assert float((auto.decode(flow, latents(flow)).tokens - exact).square().mean().sqrt()) < 0.7


def test_what_is_missing_is_made_within_its_time(device, make, monkeypatch):
    monkeypatch.setattr("harness.fitting.calibrate.DENSE_SAMPLES", 32)
    monkeypatch.setattr("harness.fitting.calibrate.LEAST_S", {device: 0.0})
    monkeypatch.setattr("harness.fitting.tune.SECONDS", {device: 1e-6})
    flow, decoder = make(device), build_decoder("auto")
    prepare(decoder, flow, 2, report=lambda sentence: None)
    assert torch.isfinite(decoder.decode(flow, latents(flow, 2)).tokens).all()


TRAINING = {
    "dataset": "digits", "sigma": 0.1, "patch": 4, "channels": 64, "blocks": 2, "layers": 1, "steps": 6, "flip": True,
    "batch_size": 4, "learning_rate": 1e-3, "warmup": 2, "threads": 1, "held_out": 16, "evaluate_every": 3,
    "checkpoint_every": 3, "decay": 0.5,
}  # fmt: skip


def losses(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_training_goes_on_where_it_stopped(device, tmp_path, monkeypatch):
    config, decode, batch = (
        TarFlowTraining.model_validate(TRAINING),
        build_decoder("sequential").decode,
        TarFlowTarget.batch,
    )
    release = train("tiny", config, tmp_path / "whole", decode, "harness train tiny")
    assert load_flow(release / "tiny.safetensors", device).num_layers == 2
    assert f"on {'a processor' if device == 'cpu' else 'cuda'}" in (release / "tiny.md").read_text(encoding="utf-8")

    def stops(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(TarFlowTarget, "batch", stops)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", config, tmp_path / "parts", decode, "harness train tiny")
    monkeypatch.setattr(TarFlowTarget, "batch", batch)
    train("tiny", config, tmp_path / "parts", decode, "harness train tiny", resume=True)
    assert losses(tmp_path / "parts") == pytest.approx(
        losses(tmp_path / "whole"), rel=1e-5 if device == "cpu" else 1e-2
    )


def test_images_lie_where_they_are_learned_from(device):
    config = TarFlowTraining.model_validate(TRAINING)
    splits = Splits.of(load_dataset("digits", "train"), load_dataset("digits", "test"), config)
    target = TarFlowTarget(config, splits)
    wanted = target.batch(2)
    target.place(torch.device(device))
    images, labels = target.batch(2)
    assert images.device.type == labels.device.type == device
    assert target.digest == splits.train.digest
    if device == "cpu":
        assert torch.equal(images, wanted[0])
    else:  # other noise, by the card's own generator, the same each time
        assert torch.equal(images, target.batch(2)[0]) and images.std() == pytest.approx(float(wanted[0].std()), 0.1)
    halves = [Batches(target.batch, rank, 2)[2][0] for rank in (0, 1)]
    assert torch.equal(torch.stack(halves, dim=1).flatten(0, 1), images)
