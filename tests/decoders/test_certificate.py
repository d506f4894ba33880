"""Certificates of samples, what they are worth in deviation, and polishing what may be above a tolerance."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
from harness.decoders import Guidance, build_decoder
from harness.decoders.calibration import Calibration
from harness.decoders.certificate import ratio_of
from harness.decoders.exact import ExactBatch
from harness.decoders.schedule import LayerChoice, LayerSchedule
from harness.decoders.solver import solve_windows
from harness.decoders.trace import Certificate, Ratio
from harness.decoders.windows import Blocks, Frontier
from harness.errors import CheckpointError, HarnessError
from harness.files import read_safetensors
from harness.fitting import prepare
from harness.fitting.calibrate import calibrate, store_calibration
from harness.fitting.tune import store_schedule
from harness.flows import load_flow
from harness.flows.coupled import coupled_tarflow
from harness.flows.tap import Tally, tap

TOLERANCE = 0.02


@pytest.fixture(scope="module")
def flow():
    made = coupled_tarflow(seed=1, num_classes=4)
    store_calibration(made, samples=128)
    return made


@pytest.fixture
def checkpoint(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in coupled_tarflow(seed=2).state_dict().items()}
    save_file(tensors, tmp_path / "flow.safetensors")
    return tmp_path / "flow.safetensors"


def drawn(flow, count=24, guidance=None):
    batch = ExactBatch.draw(flow, count, torch.Generator().manual_seed(5))
    return replace(batch, guidance=guidance)


def deviation(result, batch):
    return (result.tokens - batch.exact).square().mean(dim=(1, 2)).sqrt()


def test_an_exact_sample_is_certified_to_rounding_by_one_forward_pass(flow):
    batch = drawn(flow)
    plain, told = batch.result(build_decoder("sequential")), batch.result(build_decoder("sequential", certify="state"))
    assert told.certificate.rms.max() < 1e-5 and told.certificate.largest.max() < 1e-4
    assert torch.equal(told.tokens, plain.tokens)
    assert told.fpe == plain.fpe + 1 and told.depth == plain.depth + flow.num_layers
    assert plain.certificate is None and not told.certificate.polished.any()


def test_what_encodes_to_other_latents_is_as_far_as_its_certificate_says(flow):
    batch = drawn(flow)
    result = batch.result(build_decoder("ujd", tau=0.5, certify="state"))
    encoded, _ = flow.encode(result.images, batch.labels)
    difference = encoded - flow.scale_latents(batch.latents)
    assert torch.allclose(result.certificate.rms, difference.square().mean(dim=(1, 2)).sqrt(), atol=1e-5)
    assert torch.allclose(result.certificate.largest, difference.abs().amax(dim=(1, 2)), atol=1e-4)
    again = harness.certify(flow, result.images, batch.latents, batch.labels)
    assert torch.allclose(again.rms, result.certificate.rms, atol=1e-5)
    assert torch.allclose(again.upper, result.certificate.upper, atol=1e-4)


def test_a_certificate_is_in_proportion_to_the_deviation(flow):
    batch, ratio = drawn(flow, 64), ratio_of(flow)
    assert 0 < ratio.low < ratio.median < ratio.high < math.inf and ratio.samples == 128
    assert 0 < ratio.polished_low < ratio.polished_median
    for options in ({"tau": 0.5}, {"tau": 0.1}):
        result = batch.result(build_decoder("ujd", certify="state", **options))
        true = deviation(result, batch)
        assert (true <= result.certificate.upper).float().mean() >= 0.85  # 95 %, and 64 samples
        assert 0.5 < float((result.certificate.estimate / true).median()) < 2


@pytest.mark.parametrize("decoder", ["ujd", "sejd", "frontier", "gs-jacobi", "fitted", "auto"])
def test_no_sample_is_left_above_the_tolerance_and_all_that_costs_is_counted(flow, decoder):
    options = {"fitted": {"iterations": [1]}, "auto": {"budget": 0.7}}.get(decoder, {"tau": 1.0})
    batch, tally = drawn(flow), Tally()
    layers = (LayerChoice("fitted", {"iterations": [1]}), *[LayerChoice("ujd", {"tau": 1.0})] * 2)
    store_schedule(flow, LayerSchedule(layers, "cpu", len(batch), 0.7, 0.7, 0.7, 1.0))
    plain = build_decoder(decoder, **options)
    before, asked = batch.result(plain), replace(plain, certify=TOLERANCE)
    assert asked.needs(flow, len(batch)) == []
    result = replace(batch, flow=tap(flow, tally)).result(asked)
    assert not result.certificate.above.any() and result.certificate.estimate.isfinite().all()
    assert deviation(result, batch).max() <= 2 * TOLERANCE
    assert result.certificate.polished.any() == (decoder != "gs-jacobi")  # whose samples are exact here
    for trace in result.layers:
        counted = tally.layers[trace.layer]
        assert trace.token_evaluations == pytest.approx(counted.token_evaluations)
        assert trace.depth == counted.calls
    assert result.fpe > before.fpe + 0.999
    left_alone = ~result.certificate.polished
    assert torch.equal(result.tokens[left_alone], before.tokens[left_alone])


def test_a_layer_that_was_exact_is_left_alone_and_so_are_samples_below_the_tolerance(flow):
    batch = drawn(flow)
    told = batch.result(build_decoder("sejd", tau=0.5, certify="state")).certificate.upper
    middle = float(told.median())
    result = batch.result(build_decoder("sejd", tau=0.5, certify=middle))
    assert torch.equal(result.certificate.polished, told > middle)
    assert ["polished" in trace.flags for trace in result.layers] == [False, True, True]


def test_what_is_exact_throughout_is_not_polished_for_its_rounding(flow):
    told = drawn(flow, 4).result(build_decoder("sequential", certify=1e-12))
    assert told.certificate.above.all() and not told.certificate.polished.any()
    assert told.fpe == pytest.approx(2) and not any(trace.flags for trace in told.layers)


def test_a_sample_is_polished_alike_alone_and_among_others(flow):
    batch = drawn(flow, 6)
    decoder = build_decoder("ujd", tau=0.5, scope="sample", certify=TOLERANCE)
    together = batch.result(decoder)
    for row in range(6):
        alone = batch.select(torch.tensor([row])).result(decoder)
        assert torch.allclose(alone.tokens[0], together.tokens[row], atol=1e-4)
        assert torch.equal(alone.certificate.polished[0], together.certificate.polished[row])


def test_a_sample_that_overflows_changes_no_other_and_is_said_to_be_above(flow):
    batch = drawn(flow, 4)
    latents = batch.latents.clone()
    latents[1] *= 1e30
    decoder = build_decoder("fitted", iterations=[1], certify=TOLERANCE, fallback="leave")
    with_it = decoder.decode(flow, latents, batch.labels)
    without = batch.result(decoder)
    assert with_it.certificate.above.tolist() == [False, True, False, False]
    kept = [0, 2, 3]
    assert torch.allclose(with_it.tokens[kept], without.tokens[kept], atol=1e-4)


@pytest.mark.parametrize("windows", [Blocks(16, 1e-6), Blocks(4, 1e-6), Frontier(5, 1e-6)], ids=str)
def test_with_windows_of_their_own_samples_go_on_when_one_is_not_finite(flow, windows):
    batch, layer = drawn(flow, 3), flow.layers[0]
    inputs = layer.arrange(flow.scale_latents(batch.latents))
    inputs[1, 0] = float("nan")
    options = {"norm": "inf", "scope": "sample"}
    tokens, trace = solve_windows(layer, inputs, batch.condition, inputs.clone(), windows, **options)
    assert not trace.converged and "non-finite" in trace.flags
    rows = torch.tensor([0, 2])
    alone, _ = solve_windows(
        layer, inputs[rows], batch.condition.select(rows), inputs[rows].clone(), windows, **options
    )
    assert torch.allclose(tokens[rows], alone, atol=1e-5)


def test_where_iterations_do_not_suffice_the_sample_is_decoded_token_by_token(flow, monkeypatch):
    monkeypatch.setattr("harness.decoders.certificate.SHARES", ())
    batch = drawn(flow)
    result = batch.result(build_decoder("ujd", tau=0.5, certify=1e-3))
    assert result.certificate.polished.all() and not result.certificate.above.any()
    assert torch.allclose(result.tokens, batch.exact, atol=1e-4)


def test_guided_samples_are_certified_by_the_guided_layers(flow):
    batch = drawn(flow, 12, Guidance(0.5))
    assert batch.result(build_decoder("sequential", certify="state")).certificate.rms.max() < 1e-5
    result = batch.result(build_decoder("sejd", tau=0.5, certify=TOLERANCE))
    assert not result.certificate.above.any() and deviation(result, batch).max() <= 2 * TOLERANCE


def test_without_calibration_a_certificate_is_told_but_no_tolerance_is_kept(checkpoint):
    flow = load_flow(checkpoint)
    batch = drawn(flow, 4)
    told = batch.result(build_decoder("ujd", certify="state")).certificate
    assert told.estimate is None and told.upper is None and "not calibrated" in str(told) and told.counts["above"] == 0
    asked = build_decoder("ujd", certify=0.01)
    assert asked.needs(flow, 4) == ["calibration"]
    with pytest.raises(HarnessError, match="harness calibrate"):
        batch.result(asked)


def test_a_calibration_of_before_is_read_and_measured_on(checkpoint, monkeypatch):
    monkeypatch.setattr("harness.fitting.calibrate.CERTIFIED", 32)
    flow = load_flow(checkpoint)
    path = store_calibration(flow, samples=32)
    made = Calibration.load(path)
    tensors, metadata = read_safetensors(path)
    assert metadata["format"] == "5"
    save_file(tensors, path, {name: text for name, text in metadata.items() if name != "certificate"} | {"format": "3"})
    old = load_flow(checkpoint)
    asked = build_decoder("ujd", certify=0.01)
    assert ratio_of(old) is None and asked.needs(old, 4) == ["certificate"] and asked.missing(old, 4) == []
    told = []
    prepare(asked, old, 4, told.append)
    assert "certificates" in told[0] and ratio_of(load_flow(checkpoint)) == ratio_of(old) and asked.needs(old, 4) == []
    assert load_file(path).keys() == tensors.keys() and Calibration.load(path).content == made.content


@pytest.mark.parametrize("wrong", ["[]", '{"median": 1}', '{"median": "x", "low": 1, "high": 2, "samples": 3}'])
def test_a_damaged_ratio_is_a_sentence(checkpoint, wrong):
    path = store_calibration(load_flow(checkpoint), samples=32)
    tensors, metadata = read_safetensors(path)
    save_file(tensors, path, metadata | {"certificate": wrong})
    with pytest.raises(CheckpointError, match="damaged"):
        Calibration.load(path)


def test_what_certificates_are_worth_is_part_of_what_a_certified_sample_depends_on(flow):
    plain, asked = build_decoder("ujd"), build_decoder("ujd", certify=0.01)
    assert plain.digest(flow, 2) is None and not plain.reads and asked.reads
    before = asked.digest(flow, 2)
    other = coupled_tarflow(seed=1, num_classes=4)
    other.fits[Calibration] = calibrate(other, samples=32)
    assert asked.digest(other, 2) is None
    other.fits[Calibration].ratio = Ratio(1.0, 0.5, 2.0, 1.0, 0.5, 32)
    assert asked.digest(other, 2) not in (None, before)


def test_a_layer_that_updates_otherwise_is_not_certified():
    class Flow(type(coupled_tarflow())):
        @property
        def layers(self):
            return [_Own(layer) for layer in super().layers]

    class _Own(type(coupled_tarflow().layers[0])):
        def __init__(self, layer):
            self.__dict__ = layer.__dict__

        def update(self, *args):
            return super().update(*args).tanh()

    flow = coupled_tarflow()
    flow.__class__ = Flow
    asked = build_decoder("ujd", certify="state")
    assert asked.needs(flow, 2) == []
    with pytest.raises(HarnessError, match="update"):
        drawn(flow, 2).result(asked)
    plain = drawn(flow, 2).result(build_decoder("ujd"))
    with pytest.raises(HarnessError, match="update"):
        harness.certify(flow, plain.images, drawn(flow, 2).latents)
    store_calibration(flow, samples=32)
    assert ratio_of(flow) is None


def test_images_of_other_latents_are_refused(flow):
    images = drawn(flow, 1).result(build_decoder("ujd")).images
    with pytest.raises(HarnessError, match="1 images cannot be samples of 2 latents"):
        harness.certify(flow, images, drawn(flow, 2).latents, torch.tensor([0]))


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf, "sure"])
def test_a_tolerance_is_a_positive_number_or_state(wrong):
    with pytest.raises(HarnessError, match="certify"):
        build_decoder("ujd", certify=wrong)


def test_a_bound_on_memory_and_a_certificate_exclude_each_other(flow):
    with pytest.raises(HarnessError, match="max_memory"):
        drawn(flow, 2).result(build_decoder("ujd", certify="state", max_memory="1GB"))


def test_certificates_are_joined_and_tell_themselves():
    one = Certificate(
        torch.tensor([0.1, 0.4]), torch.ones(2), torch.tensor([True, False]), Ratio(2.0, 1.0, 4.0, 1.0, 0.5, 8), 0.3
    )
    both = Certificate.joined([one, one])
    assert both.above.tolist() == [False, True] * 2 and both.estimate.tolist() == pytest.approx([0.1, 0.2] * 2)
    assert "2 polished, 2 above 0.3" in str(both) and both.counts == pytest.approx(
        {"polished": 2, "above": 2, "rms": 0.4, "estimate": 0.2, "upper": 0.4}
    )
