"""Tuning: the schedule is the fastest within its budget, is stored, found again, and refused when it does not fit."""

import itertools
import math
import random
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from harness.decoders import build_decoder
from harness.decoders.decoder import ScheduleRequest
from harness.decoders.exact import samples_together
from harness.decoders.schedule import LayerChoice, LayerSchedule, find_schedule, schedule_suffix
from harness.decoders.stored import checkpoint_digest, storage
from harness.errors import HarnessError
from harness.fitting import prepare
from harness.fitting.calibrate import store_calibration
from harness.fitting.trials import FEWEST, Costs
from harness.fitting.tune import HALF, SEQUENTIAL, Tuner, _all_in, _pareto, candidates, store_schedule
from harness.flows import load_flow
from harness.flows.coupled import coupled_tarflow


@pytest.fixture(scope="module")
def flow():
    return calibrated(coupled_tarflow(seed=4))


def calibrated(flow):
    store_calibration(flow, samples=128)
    return flow


@pytest.fixture
def checkpoint(flow, tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in flow.state_dict().items()}, tmp_path / "flow.safetensors")
    return tmp_path / "flow.safetensors"


def deviation(flow, decoder, count=64, batch=64):
    latents = flow.sample_latents(count, torch.Generator().manual_seed(99))
    exact = build_decoder("sequential").decode(flow, latents).tokens
    tokens = torch.cat([decoder.decode(flow, part).tokens for part in latents.split(batch)])
    return float((tokens - exact).square().mean().sqrt())


@pytest.mark.parametrize("seed", range(5))
def test_no_schedule_within_the_budget_is_faster(seed):
    numbers = random.Random(seed)
    seconds = [numbers.random() for _ in range(4)]
    errors = [[numbers.random() * 0.1 for _ in seconds] for _ in range(3)]
    allowed = 0.15
    everything = [
        (sum(seconds[i] for i in places), sum(errors[layer][i] for layer, i in enumerate(places)), places)
        for places in itertools.product(range(4), repeat=3)
    ]
    within = sorted(entry for entry in everything if entry[1] <= allowed)
    found = _pareto(seconds, errors, allowed)
    assert found[0] == within[0][2]
    assert found[-1] == min(within, key=lambda entry: entry[1])[2]
    assert _pareto(seconds, [[1.0] * 4] * 3, allowed) == []


@pytest.mark.parametrize(("true", "expected"), [(0.8, 0), (0.99, 1), (5.0, None)])
def test_a_schedule_predicted_a_little_too_large_is_tried_and_none_is_told(monkeypatch, true, expected):
    """Of one layer whose candidates are predicted to leave 0.12, 0.1 and 0.05, and leave `true` times that."""
    told = []
    tuner, choices = object.__new__(Tuner), [LayerChoice("fitted", {"iterations": [n]}) for n in (1, 2, 3)]
    tuner.choices, tuner.errors, tuner.flow = choices, [[0.12**2, 0.1**2, 0.05**2]], SimpleNamespace(num_layers=1)
    left = {str((choice,)): true * error for choice, error in zip(choices, (0.12, 0.1, 0.05), strict=True)}
    tuner.reporter = SimpleNamespace(note=told.append)
    monkeypatch.setattr(Tuner, "_held", lambda self, layers: SimpleNamespace(upper=left[str(layers)]))
    assert tuner._within(0.1, [1.0, 2.0, 3.0]) == ((SEQUENTIAL if expected is None else choices[expected]),)
    assert ["surely within 0.1" in sentence for sentence in told] == [True] * (expected is None)


@pytest.fixture(scope="module")
def tuner(flow):
    """On a processor that multiplies bfloat16, whatever this one does."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("harness.fitting.tune.multiplies_bfloat16", lambda device: True)
        return Tuner(flow, samples=32)


def test_a_schedule_keeps_its_budget_on_latents_it_never_saw(flow, tuner):
    for budget in (0.3, 0.02):
        schedule = tuner.schedule(batch=4, budget=budget)
        assert schedule.deviation < budget == schedule.allowed
        assert len(schedule.layers) == flow.num_layers


def test_samples_are_the_same_in_any_batches(flow, monkeypatch):
    wide = Tuner(flow, samples=24)
    monkeypatch.setattr("harness.fitting.tune.samples_together", lambda flow: 5)
    narrow = Tuner(flow, samples=24)
    assert torch.allclose(wide.held_out.exact, narrow.held_out.exact, atol=1e-5)
    assert torch.tensor(narrow.errors) == pytest.approx(torch.tensor(wide.errors), rel=0.05, abs=1e-9)


def test_what_is_not_reached_in_the_seconds_is_not_chosen(flow):
    hurried = Tuner(flow, seconds=1e-9)
    assert len(hurried.tuned_on) == len(hurried.held_out) == FEWEST
    assert all(layer[0] == 0.0 and set(layer[1:]) == {float("inf")} for layer in hurried.errors)
    assert hurried.schedule(batch=2).layers == (SEQUENTIAL,) * flow.num_layers


def test_samples_are_as_many_as_the_seconds_suffice_for():
    costs = Costs(exact_s=0.3, pass_s=0.13, step=16)
    assert costs.affordable(math.inf, 256, 1.0, 14) == 256
    assert [costs.affordable(seconds, 256, 1.0, 14) for seconds in (0.0, 70.0, 1e6)] == [16, 32, 256]
    assert costs.affordable(0.0, 8, 1.0, 14) == 8


def test_a_schedule_is_chosen_within_the_seconds_that_there_are(flow):
    assert Tuner(flow, samples=16, seconds=1e6).schedule(batch=2, budget=0.3).layers != (SEQUENTIAL,) * flow.num_layers


def test_a_gpu_is_given_more_samples_at_a_time():
    on = {name: SimpleNamespace(device=torch.device(name), num_tokens=256) for name in ("cpu", "cuda")}
    assert (samples_together(on["cpu"]), samples_together(on["cuda"])) == (64, 256)


def test_the_dtype_of_the_networks_is_chosen_by_whole_decodes(tuner, monkeypatch):
    timed = []
    monkeypatch.setattr(Tuner, "_fastest", lambda self, batch, found: timed.extend(found) or found[-1])
    schedule = tuner.schedule(batch=4, budget=0.3)
    assert schedule.layers == timed[-1] and len(timed) > 1
    assert all(_all_in(HALF, layers) == timed[-1] for layers in timed)
    assert all(choice == SEQUENTIAL or choice.options["network_dtype"] == HALF for choice in timed[-1])


def test_a_way_that_was_not_timed_is_not_chosen(tuner, monkeypatch):
    took = [math.inf if HALF in str(choice) else 1.0 for choice in tuner.choices]
    monkeypatch.setattr(tuner, "_seconds", {4: [0.5 * took[0], *took[1:]]})
    schedule = tuner.schedule(batch=4, budget=0.3)
    assert math.isfinite(schedule.predicted_s) and HALF not in str(schedule.layers)


def test_an_impossible_budget_is_sequential(tuner):
    schedule = tuner.schedule(batch=2, budget=1e-12)
    assert schedule.layers == (LayerChoice("sequential"),) * 3
    assert schedule.deviation == 0.0


def test_the_default_budget_is_the_deviation_of_sejd(flow):
    schedule = Tuner(flow, samples=64).schedule(batch=8)
    assert schedule.budget is None
    assert schedule.allowed == pytest.approx(deviation(flow, build_decoder("sejd"), batch=8), rel=0.5)
    assert schedule.deviation < schedule.allowed


def test_a_stored_schedule_is_used_for_the_nearest_batch(checkpoint):
    flow = calibrated(load_flow(checkpoint))
    tuner = Tuner(flow, samples=16)
    path, strict = (store_schedule(flow, tuner.schedule(4, budget)) for budget in (None, 0.2))
    assert LayerSchedule.load(strict) == find_schedule(flow, 9, 0.2)
    stored = LayerSchedule.load(path)
    assert stored == find_schedule(flow, 3, None)
    assert find_schedule(flow, 4, 0.01) is None
    assert all(stored.serves(batch) for batch in (2, 4, 8)) and not any(stored.serves(batch) for batch in (1, 9))
    other = LayerSchedule((LayerChoice("sequential"),) * 3, "cpu", 64, None, 1.0, 0.0, 1.0, stored.digest)
    other.save(path.with_name(path.name.replace("batch4", "batch64")))
    modes = [trace.mode for trace in build_decoder("auto").decode(load_flow(checkpoint), latents(flow, 40)).layers]
    assert modes == ["sequential"] * 3


def latents(flow, count):
    return flow.sample_latents(count, torch.Generator().manual_seed(1))


def test_what_was_never_tuned_is_asked_for_and_made_by_prepare(monkeypatch):
    monkeypatch.setattr("harness.fitting.calibrate.DENSE_SAMPLES", 128)
    flow, told, auto = coupled_tarflow(seed=5), [], build_decoder("auto", budget=0.2)
    with pytest.raises(HarnessError, match="`harness tune FLOW --batch 2`"):
        auto.decode(flow, latents(flow, 2))
    assert auto.missing(flow, 2) == ["calibration with learned corrections", ScheduleRequest(2, 0.2)]
    for batch in (2, 2, 3, 4, 1):
        prepare(auto, flow, batch, report=told.append)
    made = [line for line in told if "now, as" in line]  # the others tell who else computes
    assert ["fitting now" in made[0], "tuning now" in made[1], len(made)] == [True, True, 2]
    first = auto.decode(flow, latents(flow, 2))
    assert torch.equal(first.tokens, auto.decode(flow, latents(flow, 2)).tokens)
    auto.decode(flow, latents(flow, 64))  # the last batch of many may be of any size
    assert auto.missing(flow, 64) == [ScheduleRequest(64, 0.2)]


@pytest.mark.parametrize("options", [{"budget": 0}, {"tau": 0.0}, {"budget": 0.5, "tau": 0.0}])
def test_budget_0_and_tau_0_are_exact(flow, options):
    assert deviation(flow, build_decoder("auto", **options), count=3) < 1e-5


def test_a_schedule_for_another_flow_or_damaged_is_refused(flow, checkpoint, tmp_path):
    digest = checkpoint_digest(checkpoint)
    path = tmp_path / "mine.toml"
    LayerSchedule((LayerChoice("fitted", {"iterations": [2]}),), "cpu", 4, 0.1, 0.1, 0.05, 1.0, digest).save(path)
    with pytest.raises(HarnessError, match="1 layers, but the flow has 3"):
        build_decoder("auto", schedule=str(path)).decode(flow, latents(flow, 2))
    path.write_text(path.read_text().replace("iterations", "iteration"))
    with pytest.raises(HarnessError, match="did you mean 'iterations'"):
        LayerSchedule.load(path)
    path.write_text(path.read_text().replace("iteration ", "iterations ").replace("batch = 4", "batch = inf"))
    with pytest.raises(HarnessError, match="not a schedule"):
        LayerSchedule.load(path)
    path.write_text("layers = 3")
    with pytest.raises(HarnessError, match="not a schedule"):
        LayerSchedule.load(path)
    path.write_text("layers = [")
    with pytest.raises(HarnessError, match="cannot be read"):
        LayerSchedule.load(path)
    with pytest.raises(HarnessError, match="budget"):
        build_decoder("auto", budget=-1)


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, "bfloat16"), (False, None)])
def test_networks_are_in_bfloat16_only_where_the_device_multiplies_it(checkpoint, monkeypatch, multiplies, dtype):
    flow = calibrated(load_flow(checkpoint))
    half = (LayerChoice("sequential"), *[LayerChoice("fitted", {"iterations": [2], "network_dtype": HALF})] * 2)
    path = storage(checkpoint, schedule_suffix("cpu", 4, 0.2))
    LayerSchedule(half, "cpu", 4, 0.2, 0.2, 0.1, 1.0, checkpoint_digest(checkpoint)).save(path)
    monkeypatch.setattr("harness.decoders.auto.multiplies_bfloat16", lambda device: multiplies)
    expected = [choice.with_networks(dtype).build().bind(flow, 4) for choice in half]
    decoder = build_decoder("auto", budget=0.2).bind(flow, 4)
    assert [layer.network_dtype for layer in decoder._layers[1:]] == [dtype] * 2
    inputs = flow.layers[1].arrange(latents(flow, 4))
    solved = [each.solve(flow.layers[1], inputs, flow.condition(4))[0] for each in (decoder, expected[1])]
    assert torch.equal(*solved)


def test_half_precision_is_no_candidate_where_it_is_emulated(flow, monkeypatch):
    found = {}
    for multiplies in (True, False):
        monkeypatch.setattr("harness.fitting.tune.multiplies_bfloat16", lambda device, told=multiplies: told)
        found[multiplies] = [choice.options.get("network_dtype") for choice in candidates(flow)]
    assert HALF in found[True] and found[False] == [None] * (len(found[True]) // 2 + 1)


def test_candidates_fit_the_sequence(flow):
    for choice in candidates(flow):
        result = choice.build().decode(flow, latents(flow, 2))
        assert all(trace.depth <= flow.num_tokens + 15 for trace in result.layers), str(choice)
