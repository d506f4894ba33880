"""The probe of first guesses: its calls are those that decoders make."""

import shutil

import pytest
import torch

from harness.decoders import build_decoder
from harness.decoders.exact import ExactBatch
from harness.errors import HarnessError
from harness.flows.checkpoints import checkpoint_path
from harness.flows.coupled import coupled_discrete, coupled_tarflow
from harness.measure.cells import Subject
from harness.measure.probes.crm import Crm
from harness.measure.probes.drafts import ABOVE, GUESSES, Drafts, iterate
from harness.measure.run_probe import subject_of
from harness.measure.units import Bench


@pytest.fixture(params=[0.0, 1.0])
def batch(request):
    flow = coupled_discrete().tempered(request.param)
    return ExactBatch(flow, flow.sample_latents(8, torch.Generator().manual_seed(0)), torch.arange(8) % 4)


@pytest.mark.parametrize(("guess", "initial"), [("blank", "zeros"), ("noise", "input")])
def test_the_slowest_sample_takes_as_many_calls_as_the_decoder(batch, guess, initial):
    (problem,) = batch.layers()
    _, calls = iterate(problem, GUESSES[guess](batch.flow, batch, problem), 16)
    (trace,) = batch.result(build_decoder("ujd", tau=0.5, initial=initial)).layers
    assert int(calls.max()) == trace.iterations


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("window", [16, 4])
def test_calls_are_at_least_one_and_at_most_one_a_token(batch, guess, window):
    (problem,) = batch.layers()
    start, calls = iterate(problem, GUESSES[guess](batch.flow, batch, problem), window, above=guess == ABOVE)
    assert (calls >= 16 // window).all() and (calls <= 16).all()
    assert (start[:, 1:].sum(2) == 1).all()


def test_a_guess_that_is_right_takes_one_call_a_window(batch):
    (problem,) = batch.layers()
    for window in (16, 4):
        start, calls = iterate(problem, problem.exact, window)
        assert torch.equal(start, problem.exact) and (calls == 16 // window).all()


def test_a_row_is_begun_from_the_one_above(batch):
    (problem,) = batch.layers()
    start, _ = iterate(problem, torch.zeros_like(problem.exact), 4, above=True)
    assert torch.equal(start[:, 5:], problem.exact[:, 1:-4])
    assert (start[:, 1:5, 0] == 1).all()


def test_a_checkpoint_given_by_its_path_has_held_out_bits_too(tmp_path):
    path = shutil.copy(checkpoint_path("discrete-digits"), tmp_path / "mine.safetensors")
    probe, bench = Drafts(samples=1, temperatures=(1.0,), guesses=("noise",)), Bench("")
    subject = subject_of(probe, str(path), None, "cpu")
    (row,) = probe.measure(probe.units(subject.load(), subject)[0], bench)["drafts"]
    assert 0 < row["held_out_bits"] < row["beside_bits"]


def test_flows_without_discrete_tokens_and_unknown_guesses_are_told():
    subject = Subject.__new__(Subject)
    object.__setattr__(subject, "checkpoint", "digits")
    with pytest.raises(HarnessError, match="no discrete tokens"):
        Drafts().units(coupled_tarflow(), subject)
    with pytest.raises(HarnessError, match="first guess"):
        Drafts(guesses=("oracle",)).units(coupled_discrete(), subject)
    units = Drafts(temperatures=(1.0,)).units(coupled_discrete(), subject)
    assert len(units) == 2 * len(GUESSES) - 1


def test_crm_says_that_discrete_tokens_have_no_such_map():
    subject = Subject.__new__(Subject)
    object.__setattr__(subject, "checkpoint", "discrete-digits")
    with pytest.raises(HarnessError, match="last linear map"):
        Crm().units(coupled_discrete(), subject)
