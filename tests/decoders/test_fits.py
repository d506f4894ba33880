"""Fitted guesses and corrections: what they gain, what they must not touch, and how they are stored."""

import copy
import os
import re
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.decoders import Guidance, build_decoder
from harness.decoders.calibration import FORMAT, SUFFIX, Calibration, LayerFit, calibration_of
from harness.decoders.learned import GatedMap
from harness.decoders.maps import DENSE, DenseMap, Guess, LaggedMap
from harness.decoders.schedule import LayerChoice, LayerSchedule
from harness.decoders.sequential import solve_sequential
from harness.decoders.stored import checkpoint_digest, storage, stored
from harness.decoders.windows import Slide
from harness.errors import HarnessError, StoreError
from harness.files import read_safetensors
from harness.fitting import prepare
from harness.fitting.calibrate import calibrate, neighbours, store_calibration
from harness.fitting.regression import Samples, fit_correction, fit_guess, group_means
from harness.fitting.tune import store_schedule
from harness.flows import load_flow
from harness.flows.checkpoints import ASSETS
from harness.flows.coupled import coupled_tarflow
from harness.flows.protocols import Explained
from harness.flows.tap import Tally, tap

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def flow():
    return coupled_tarflow(seed=1)


@pytest.fixture(scope="module")
def fits(flow):
    return calibrate(flow, samples=128)


@pytest.fixture
def checkpoint(flow, tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in flow.state_dict().items()}, tmp_path / "flow.safetensors")
    return tmp_path / "flow.safetensors"


def latents_of(flow, n=6):
    return flow.sample_latents(n, torch.Generator().manual_seed(11))


def weights(fit):
    return [correction.weight for correction in fit.corrections]


def errors(flow, decoder):
    latents = latents_of(flow, 32)
    exact = build_decoder("sequential").decode(flow, latents).tokens
    return float((decoder.decode(flow, latents).tokens - exact).square().mean().sqrt())


def test_a_lagged_map_is_the_sum_over_lags():
    tokens, weight = torch.randn(2, 7, 3), torch.randn(2 * 3, 3)
    expected = torch.zeros(2, 7, 3)
    for lag, matrix in zip((1, 4), weight.chunk(2), strict=True):
        expected[:, lag:] += tokens[:, :-lag] @ matrix
    assert torch.allclose(LaggedMap((1, 4), weight)(tokens), expected, atol=1e-5)


def test_a_dense_map_of_a_window_is_that_of_the_sequence_with_zeros_around_it():
    labels, dense = torch.tensor([1, -1, 0]), DenseMap(torch.randn(3, 7, 2, 7, 2))
    tokens = torch.zeros(3, 7, 2)
    tokens[:, 2:6] = torch.randn(3, 4, 2)
    window = dense.span(dense.features(tokens[:, 2:6]), labels, 2, 1, 3)
    assert torch.allclose(window, dense(tokens, labels)[:, 3:5], atol=1e-5)
    by_hand = torch.stack(
        [torch.einsum("md,mdle->le", x, dense.weight[c]) for x, c in zip(tokens, (1, 2, 0), strict=True)]
    )
    assert torch.allclose(dense(tokens, labels), by_hand, atol=1e-5)


@pytest.mark.parametrize("lags", [(1,), None])
def test_a_layer_that_is_linear_for_each_class_is_fitted_exactly(lags):
    """It leaves nothing to a correction; a sample without a class starts from the mean over classes."""
    labels = torch.arange(400) % 2
    inputs, shift = torch.randn(400, 6, 2), torch.tensor([1.0, -1.0])[labels][:, None, None]
    outputs = LaggedMap((0, 1), torch.randn(4, 2))(inputs) + shift
    samples = Samples(labels, 2, lags)
    guess = fit_guess(inputs, outputs, samples)
    assert float((guess(inputs, labels) - outputs).abs().mean()) < 0.02
    unlabelled = guess(inputs, torch.full((400,), -1))
    assert torch.allclose(unlabelled, guess(inputs), atol=1e-5)
    assert 0.5 < float((unlabelled - outputs).abs().mean()) < 1.5
    assert fit_correction(torch.randn(400, 6, 2), torch.zeros(400, 6, 2), samples).weight.abs().max() < 1e-6


def test_dense_maps_of_classes_differ_where_the_layer_does():
    labels = torch.arange(600) % 2
    inputs = torch.randn(600, 5, 1)
    outputs = inputs * torch.tensor([2.0, 0.5])[labels][:, None, None]
    guess = fit_guess(inputs, outputs, Samples(labels, 2, None))
    assert torch.allclose(guess(inputs, labels), outputs, atol=0.1)


def test_means_of_few_noisy_samples_are_drawn_together():
    values = torch.randn(40, 5, 3)
    means = group_means(values, torch.arange(40) % 10, 10)
    assert means[:10].std() < 0.5 * torch.stack([values[c::10].mean(dim=0) for c in range(10)]).std()
    apart = values + 10 * (torch.arange(40) % 10)[:, None, None]
    means = group_means(apart, torch.arange(40) % 10, 10)
    assert torch.allclose(means[:10].mean(dim=(1, 2)), 10.0 * torch.arange(10), atol=0.5)


@pytest.mark.parametrize("samples", [Samples(None, 0, (1, 2)), Samples(None, 0, None)])
def test_what_overflowed_teaches_nothing(samples):
    values = torch.randn(16, 4, 2)
    broken = values.masked_fill(values > 2, float("inf"))
    broken[0, 0, 0] = float("nan")
    assert torch.equal(fit_guess(values, broken, samples)(values), values)
    assert not fit_correction(broken, values, samples).weight.any()


def test_each_fitted_part_brings_the_samples_closer(flow, fits):
    plain = errors(flow, build_decoder("fitted", iterations=2, initial="input", correction=None))
    guess = errors(flow, build_decoder("fitted", iterations=2, correction=None, calibration=fits))
    both = errors(flow, build_decoder("fitted", iterations=2, calibration=fits))
    assert both < guess < plain


@pytest.mark.parametrize("decoder", ["ujd", "sejd", "frontier", "gs-jacobi", "fitted"])
def test_tau_0_is_exact_whatever_was_fitted(flow, fits, decoder):
    latents = latents_of(flow)
    exact = build_decoder("sequential").decode(flow, latents).tokens
    options = {"initial": "fitted", "correction": "fitted", "calibration": fits, "tau": 0.0}
    result = build_decoder(decoder, **options).decode(flow, latents)
    assert result.converged
    assert torch.allclose(result.tokens, exact, atol=TOLERANCE)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_corrections_leave_the_exact_prefix_alone(flow, fits, iterations):
    decoder = build_decoder(
        "ujd", tau=0.0, max_iterations=iterations, initial="fitted", correction="fitted", calibration=fits
    ).bind(flow, 6)
    layer = flow.layers[0]
    inputs, condition = layer.arrange(flow.scale_latents(latents_of(flow))), flow.condition(6)
    exact, _ = solve_sequential(layer, inputs, condition)
    tokens, _ = decoder.solve(layer, inputs, condition)
    assert torch.allclose(tokens[:, : iterations + 1], exact[:, : iterations + 1], atol=TOLERANCE)
    assert not torch.allclose(tokens, exact, atol=TOLERANCE)


def test_tokens_of_a_slide_are_corrected_by_their_age():
    slide = Slide(width=12, stride=4, tau=0.5)
    assert slide.visits((0, 4), 4, 0) == [(0, 4, 0)]
    assert slide.visits((0, 8), 8, 0) == [(0, 4, 1), (4, 8, 0)]
    assert slide.visits((8, 20), 12, 0) == [(0, 4, 2), (4, 8, 1), (8, 12, 0)]
    assert slide.visits((8, 20), 6, 0) == [(0, 4, 2), (4, 6, 1)]
    change, maps = torch.randn(2, 8, 3), [LaggedMap((1, 2), torch.randn(6, 3)) for _ in range(2)]
    fit = LayerFit(Guess(LaggedMap((0,), torch.eye(3)), torch.zeros(1, 8, 3)), tuple(maps))
    corrected = fit.linear(change, None, None, 1, slide.visits((0, 8), 8, 0))
    assert torch.allclose(corrected[:, :4], maps[1](change)[:, :4], atol=1e-6)
    assert torch.allclose(corrected[:, 4:], maps[0](change)[:, 4:], atol=1e-6)


def test_a_corrected_slide_beats_as_many_whole_iterations(flow, fits):
    """A token's last update comes when its predecessors have had theirs."""
    options = {"initial": "fitted", "correction": "fitted", "calibration": fits, "fallback": "leave"}
    slide = errors(flow, build_decoder("frontier", window=4, advance=2, **options))
    assert slide < errors(flow, build_decoder("fitted", iterations=2, calibration=fits))


def test_a_budget_is_spent_per_layer_and_honestly(flow, fits):
    result = build_decoder("fitted", iterations=[3, 1], calibration=fits, tau=1e-6).decode(flow, latents_of(flow))
    assert [trace.depth for trace in result.layers] == [3, 1, 1]
    assert result.converged and result.state == "done"
    assert all((trace.state, trace.flags) == ("done", ()) for trace in result.layers)


def test_work_is_done_only_when_it_is_finite_and_judged_only_where_that_is_asked_for(flow, fits):
    options = {"iterations": [1], "calibration": fits, "tau": 1e-6}
    judged = build_decoder("fitted", fallback="sequential", **options).decode(flow, latents_of(flow))
    assert all("redecoded" in trace.flags for trace in judged.layers) and judged.state == "converged"
    wild = build_decoder("fitted", fallback="leave", **options).decode(flow, latents_of(flow) * 1e38)
    assert not wild.converged and wild.state == "not converged"
    capped = build_decoder("ujd", max_iterations=1, tau=1e-6, fallback="leave").decode(flow, latents_of(flow))
    assert capped.state == "not converged"


def test_calibration_is_stored_beside_the_checkpoint_and_found_again(checkpoint):
    flow = load_flow(checkpoint)
    path = store_calibration(flow, samples=32)
    assert path.parent == checkpoint.parent / "calibration"
    assert path.name.startswith(checkpoint_digest(checkpoint)[:16])
    stored = calibration_of(flow)
    again = calibrate(flow, samples=32, digest=checkpoint_digest(checkpoint))
    assert again.content == stored.content and again.metrics == stored.metrics
    for fit, kept in zip(again.layers, stored.layers, strict=True):
        near = partial(torch.allclose, atol=1e-3)  # a file keeps half precision
        assert near(fit.guess.map.weight, kept.guess.map.weight) and all(map(near, weights(fit), weights(kept)))
    build_decoder("fitted").decode(flow, latents_of(flow))


def test_what_was_never_fitted_is_asked_for_and_made_once_by_prepare(checkpoint, monkeypatch):
    monkeypatch.setattr("harness.fitting.calibrate.DENSE_SAMPLES", 128)
    loaded, bare = load_flow(checkpoint), coupled_tarflow(seed=2)
    for flow, name in ((loaded, str(checkpoint)), (bare, "FLOW")):
        watched, told, decoder = Tally(), [], build_decoder("fitted")
        with pytest.raises(HarnessError, match=f"`harness calibrate {re.escape(name)}`"):
            decoder.decode(flow, latents_of(flow))
        assert decoder.missing(flow, 6) == ["calibration"]
        for _ in range(2):
            prepare(decoder, tap(flow, watched), 6, report=told.append)
        assert len(told) == 1 and "fitting now" in told[0] and not watched.layers
        decoder.decode(tap(flow, watched), latents_of(flow))
        assert [tally.calls for tally in watched.layers.values()] == [3, 1, 1]
    assert stored(checkpoint, SUFFIX).is_file()


def test_an_unwritable_folder_is_left_alone(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert storage(checkpoint, SUFFIX).is_relative_to(tmp_path / "cache")


def test_what_is_shipped_serves_its_checkpoint_wherever_that_lies(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.decoders.stored.ASSETS", checkpoint.parent)
    store_calibration(load_flow(checkpoint), samples=32).parent.rename(checkpoint.parent / "calibration")
    elsewhere = tmp_path / "elsewhere" / "mine.safetensors"
    elsewhere.parent.mkdir()
    shutil.copy(checkpoint, elsewhere)
    assert stored(elsewhere, SUFFIX).parent == checkpoint.parent / "calibration"
    assert build_decoder("fitted").missing(load_flow(elsewhere), 6) == []
    made = store_calibration(load_flow(elsewhere), samples=40)
    assert made == stored(elsewhere, SUFFIX) and made.parent == elsewhere.parent / "calibration"


def test_what_is_shipped_is_never_written_and_what_is_made_again_is_read_first(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flow = load_flow(checkpoint)
    shipped, before = store_calibration(flow, samples=32), calibration_of(flow).content
    monkeypatch.setattr("harness.decoders.stored.ASSETS", checkpoint.parent)
    path = store_calibration(flow, samples=40)
    assert path.is_relative_to(tmp_path / "cache") and path == stored(checkpoint, SUFFIX) != shipped
    assert calibration_of(flow).content == calibration_of(load_flow(checkpoint)).content != before
    assert Calibration.load(shipped).content == before


def test_calibrations_and_copies_of_a_flow_are_kept_apart(flow):
    flow = copy.deepcopy(flow)
    flow.fits[Calibration] = calibrate(flow, samples=32)
    assert not copy.deepcopy(flow).fits and calibration_of(tap(flow, Tally())) is flow.fits[Calibration]


def test_a_calibration_is_moved_by_torch(fits):
    moved = copy.deepcopy(fits).to(torch.float64)
    assert {tensor.dtype for tensor in moved.state_dict().values()} == {torch.float64}
    assert moved.content == fits.content


def test_a_missing_or_foreign_or_damaged_calibration_is_refused(checkpoint, flow, fits, tmp_path):
    loaded = load_flow(checkpoint)
    with pytest.raises(HarnessError, match="cannot be read"):
        build_decoder("fitted", calibration=str(tmp_path / "nothing")).decode(loaded, latents_of(flow))
    fits.save(tmp_path / "foreign.safetensors")
    with pytest.raises(HarnessError, match="another checkpoint"):
        build_decoder("fitted", calibration=str(tmp_path / "foreign.safetensors")).decode(loaded, latents_of(flow))
    tensors = load_file(tmp_path / "foreign.safetensors")
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(HarnessError, match="no calibration"):
        Calibration.load(tmp_path / "bare.safetensors")
    deep = {"format": FORMAT, "digest": "", "samples": "1", "lags": "[" * 100_000}
    save_file(tensors, tmp_path / "deep.safetensors", deep)
    with pytest.raises(HarnessError, match="is damaged"):
        Calibration.load(tmp_path / "deep.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "foreign.safetensors").read_bytes()[:100])
    with pytest.raises(HarnessError, match="cannot be read"):
        Calibration.load(tmp_path / "cut.safetensors")


def test_neighbours_of_an_image_are_in_the_row_before():
    flow = coupled_tarflow()
    assert flow.num_tokens * flow.token_dim <= DENSE
    assert neighbours(flow) is None  # so short that every predecessor is looked at


@pytest.fixture(scope="module")
def learned(flow):
    fits = calibrate(flow, samples=128, learned=True)
    assert fits.complete and all(len(fit.learned) for fit in fits.layers)  # else what follows shows nothing
    return fits


def test_learned_corrections_leave_less_than_linear_ones(flow, learned):
    linear, gated = (
        build_decoder("fitted", iterations=2, correction=kind, calibration=learned) for kind in ("fitted", "learned")
    )
    assert errors(flow, gated) < 0.9 * errors(flow, linear)


def test_learned_corrections_leave_less_than_linear_ones_in_a_sliding_window(flow, learned):
    options = {"window": 4, "advance": 2, "initial": "fitted", "calibration": learned, "fallback": "leave"}
    linear, gated = (build_decoder("frontier", correction=kind, **options) for kind in ("fitted", "learned"))
    assert errors(flow, gated) < 0.9 * errors(flow, linear)


def test_a_token_of_a_window_gets_what_was_learned_for_its_own_number_of_updates(flow, learned):
    found = learned.layers[0]
    gated, other = found.learned[0], copy.deepcopy(found.learned[0])
    torch.nn.init.normal_(other.leave)
    fit = LayerFit(found.guess, list(found.corrections), [gated, other], [found.beside[n] for n in (0, 1, 1)])
    visits = [(0, 2, 2), (2, 4, 1), (4, 6, 0)]
    size, dim, hidden = 6, flow.token_dim, flow.layers[0].hidden_dim
    change, told = torch.randn(3, size, dim), Explained(*(torch.randn(3, size, n) for n in (dim, dim, hidden)))
    assert fit.gated.asks(visits) and not fit.gated.asks([(0, 2, 2)])
    given = fit.gated(change, told, None, 1, visits)
    for first, end, updates in visits:
        whole = fit.gated(change, told, None, 1, [(0, size, updates)])
        torch.testing.assert_close(given[:, first:end], whole[:, first:end])
    change[:, :3] = 0
    given = fit.gated(change, told, None, 1, visits)
    assert not given[:, :4].any() and given[:, 4:].any()
    change[:, 4] += 1
    assert torch.equal(fit.gated(change, told, None, 1, visits)[:, :5], given[:, :5])


@pytest.mark.parametrize("decoder", ["ujd", "sejd", "frontier", "gs-jacobi", "fitted"])
def test_tau_0_is_exact_whatever_was_learned(flow, learned, decoder):
    options = {"initial": "fitted", "correction": "learned", "calibration": learned, "tau": 0.0}
    latents = latents_of(flow)
    result = build_decoder(decoder, **options).decode(flow, latents)
    assert result.converged
    assert torch.allclose(result.tokens, build_decoder("sequential").decode(flow, latents).tokens, atol=TOLERANCE)


@pytest.mark.parametrize("correction", ["fitted", "learned"])
@pytest.mark.parametrize(
    ("decoder", "windows"), [("frontier", {"window": 4}), ("gs-jacobi", {"blocks": 4}), ("ujd", {})]
)
def test_corrections_of_a_sample_with_windows_of_its_own_depend_on_no_other(
    flow, learned, decoder, windows, correction
):
    options = {"correction": correction, "calibration": learned, "scope": "sample"}
    asked, latents = build_decoder(decoder, **windows, **options), latents_of(flow)
    alone = torch.cat([asked.decode(flow, row[None]).tokens for row in latents])
    torch.testing.assert_close(asked.decode(flow, latents).tokens, alone, atol=TOLERANCE, rtol=0)


def test_a_gated_map_is_strictly_causal_and_adds_nothing_to_what_is_exact():
    gated = GatedMap((1, 3), 2, 2, 5, width=4)
    gated.initialise(torch.Generator().manual_seed(0))
    for part in (gated.again, gated.leave):
        torch.nn.init.normal_(part)
    change, scaled, hidden = torch.randn(2, 9, 2), torch.randn(2, 9, 2), torch.randn(2, 9, 5)
    change[:, :4] = 0
    assert not gated(change, scaled, hidden)[:, :5].any() and gated(change, scaled, hidden)[:, 5:].any()
    other, there = change.clone(), torch.tensor([6])
    other[:, there] += 1
    moved = (gated(other, scaled, hidden) != gated(change, scaled, hidden)).any(dim=(0, 2))
    assert not moved[: there + 1].any() and moved[there + 1]


def test_a_learned_correction_reads_the_hidden_state_of_its_own_sample_at_no_other_cost(flow, learned):
    """As many network calls and token evaluations as without, counted from outside."""
    tallies = []
    for kind in (None, "learned"):
        tallies.append(Tally())
        decoder = build_decoder("fitted", iterations=[2, 1], correction=kind, calibration=learned)
        decoder.decode(tap(flow, tallies[-1]), latents_of(flow))
    assert tallies[0].layers == tallies[1].layers


def test_under_guidance_corrections_are_linear(learned):
    flow = coupled_tarflow(seed=1, num_classes=4)
    fits, labels = calibrate(flow, samples=64, learned=True), torch.arange(6) % 4
    options = {"iterations": 2, "calibration": fits}
    linear, gated = (build_decoder("fitted", correction=kind, **options) for kind in ("fitted", "learned"))
    guided = [d.decode(flow, latents_of(flow), labels, Guidance(0.5)).tokens for d in (linear, gated)]
    plain = [d.decode(flow, latents_of(flow), labels).tokens for d in (linear, gated)]
    assert torch.equal(*guided) and not torch.equal(*plain)


def test_learned_corrections_are_stored_and_named_by_what_reads_them(checkpoint, tmp_path):
    flow = load_flow(checkpoint)
    linear = calibrate(flow, samples=64, digest=checkpoint_digest(checkpoint))
    both = calibrate(flow, samples=64, digest=checkpoint_digest(checkpoint), learned=True)
    both.save(tmp_path / "both.safetensors")
    again = Calibration.load(tmp_path / "both.safetensors")
    assert again.complete and not linear.complete
    assert again.content == linear.content and again.learned_content == both.learned_content != linear.learned_content
    flow.fits[Calibration] = linear
    asking = build_decoder("fitted", correction="learned", calibration=linear)
    assert asking.missing(flow, 1) == ["calibration with learned corrections"]
    with pytest.raises(HarnessError, match="no learned correction is fitted to"):
        asking.decode(flow, latents_of(flow))
    results = [
        build_decoder("fitted", correction="learned", calibration=fits).decode(flow, latents_of(flow)).tokens
        for fits in (both, again)
    ]
    torch.testing.assert_close(*results, atol=1e-2, rtol=0)  # a file keeps half precision


def test_what_may_be_learned_is_bounded_in_time(flow):
    assert not any(len(fit.learned) for fit in calibrate(flow, samples=32, learned=True, seconds=0).layers)


def test_how_many_are_decoded_together_makes_no_difference(flow):
    one, many = (calibrate(flow, samples=32, together=together).layers for together in (7, 32))
    for layer, other in zip(one, many, strict=True):
        torch.testing.assert_close(layer.guess.bias, other.guess.bias, rtol=1e-3, atol=1e-4)


def test_a_calibration_that_is_none_says_what_it_is(checkpoint):
    path = store_calibration(load_flow(checkpoint), samples=32)
    state, metadata = read_safetensors(path)
    state = {name: tensor.clone() for name, tensor in state.items()}
    broken = "layers.0.guess.map.weight"
    for write, words in (
        (lambda: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "it is a Git LFS pointer"),
        (lambda: torch.save(state, path), "it is a file of torch.save, not a safetensors file"),
        (lambda: save_file(state, path, metadata | {"metrics": "{"}), "is damaged: it is no JSON"),
        (lambda: save_file(state, path, {k: v for k, v in metadata.items() if k != "digest"}), "'digest' is missing"),
        (
            lambda: save_file(state | {broken: state[broken] * float("nan")}, path, metadata),
            f"'{broken}' is not finite",
        ),
    ):
        write()
        with pytest.raises(HarnessError, match=words) as caught:
            Calibration.load(path)
        assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


def test_an_unwritable_cache_is_a_sentence(checkpoint, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.decoders.stored.ASSETS", checkpoint.parent)
    with pytest.raises(StoreError, match="cannot write to"):
        store_calibration(load_flow(checkpoint), samples=32)


def test_what_is_fitted_and_tuned_can_be_read_by_others_and_is_not_written_into_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flow, before = load_flow("digits"), os.umask(0o022)
    there = {path: path.stat().st_mtime_ns for path in ASSETS.rglob("*")}
    schedule = LayerSchedule((LayerChoice("ujd"),) * flow.num_layers, "cpu", 2, None, 0.1, 0.1, 0.1, "")
    try:
        paths = [store_calibration(flow, samples=16), store_schedule(flow, schedule)]
    finally:
        os.umask(before)
    assert all(path.is_relative_to(tmp_path) and path.stat().st_mode & 0o777 == 0o644 for path in paths)
    assert {path: path.stat().st_mtime_ns for path in ASSETS.rglob("*")} == there
