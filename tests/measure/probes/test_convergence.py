"""The convergence propositions, on a small flow whose layers are strongly coupled, in float64."""

import pandas as pd
import pytest
import torch

from harness.decoders.exact import ExactBatch
from harness.decoders.initial import INITIAL
from harness.errors import HarnessError
from harness.flows.coupled import coupled_tarflow
from harness.measure.probes.convergence import iterate, power_rows, update_jacobian
from harness.measure.probes.probe import build_probe
from harness.measure.run_probe import run_probe
from harness.progress import LineReporter

L = 16


@pytest.fixture
def problems():
    flow = coupled_tarflow(blocks=2).double()
    return list(ExactBatch(flow, torch.randn(3, L, 4, dtype=torch.float64)).layers())


def test_after_t_iterations_the_first_t_plus_1_tokens_no_longer_change(problems):
    for problem in problems:
        tokens = torch.randn_like(problem.exact)
        tokens[:, 0] = problem.inputs[:, 0]
        for iteration in range(1, L):
            tokens, before = problem.update(tokens), tokens
            assert torch.equal(tokens[:, :iteration], before[:, :iteration])
            torch.testing.assert_close(
                tokens[:, : iteration + 1], problem.exact[:, : iteration + 1], rtol=1e-10, atol=1e-10
            )
        assert torch.equal(problem.update(tokens), tokens)  # a fixed point, to the last bit


@pytest.mark.parametrize("name", INITIAL)
def test_rows_end_with_the_fixed_point_whatever_the_start(problems, name):
    for problem in problems:
        steps, ends = iterate(problem, INITIAL[name](problem.layer, problem.inputs))
        rows, ends = pd.DataFrame(steps), pd.DataFrame(ends)
        last = rows.groupby("sample").tail(1)
        assert (last.residual == 0).all() and (last.error_inf < 1e-10).all() and set(last["sample"]) == {0, 1, 2}
        first = rows[rows.iteration == 0]
        assert first.residual.isna().all() and (first.error_inf > 0.1).all()
        assert ends.iterations.max() <= L - 1 and ends.iterations.min() > 8  # its tokens depend strongly on each other
        assert ends.latest_token.max() <= 0  # no token settled later than Prop. 3.2 says
        assert (ends.iterations.to_numpy() == last.iteration.to_numpy() - 1).all()


def test_an_iteration_that_is_cut_short_says_so(problems):
    steps, ends = iterate(problems[0], torch.zeros_like(problems[0].exact), limit=3)
    assert {row["iterations"] for row in ends} == {None} and max(row["iteration"] for row in steps) == 3
    assert min(row["error_inf"] for row in ends) > 1e-6


def test_the_residual_is_the_update_and_the_error_the_distance_to_the_sequential_output(problems):
    problem = problems[0]
    start = torch.zeros_like(problem.exact)
    steps, _ = iterate(problem, start, limit=2)
    start[:, 0] = problem.inputs[:, 0]
    once = problem.update(start)
    twice = problem.update(once)
    told = {(row["sample"], row["iteration"]): row for row in steps}
    for sample in range(3):
        assert told[sample, 2]["residual"] == pytest.approx(float((twice - once)[sample].abs().max()))
        assert told[sample, 2]["error_inf"] == pytest.approx(float((twice - problem.exact)[sample].abs().max()))
        assert told[sample, 1]["error_rms"] == pytest.approx(
            float((once - problem.exact)[sample].square().mean() ** 0.5)
        )


def test_the_jacobian_is_strictly_causal_and_nilpotent(problems):
    jacobian = update_jacobian(problems[0])
    blocks = jacobian.reshape(L, 4, L, 4).abs().amax(dim=(1, 3))
    assert (blocks.triu() == 0).all() and (blocks.tril(-1)[1:].amax(dim=1) > 0).all()
    assert (torch.linalg.matrix_power(jacobian, L) == 0).all()
    assert (torch.linalg.matrix_power(jacobian, L - 1) != 0).any()


def test_the_jacobian_predicts_the_error_of_an_iteration(problems):
    problem = problems[0]
    error = torch.randn_like(problem.exact) * 1e-6
    error[:, 0] = 0
    after = problem.update(problem.exact + error) - problem.update(problem.exact)
    for sample in range(3):
        predicted = update_jacobian(problem, sample) @ error[sample].flatten()
        torch.testing.assert_close(after[sample].flatten(), predicted, rtol=1e-3, atol=1e-10)


def test_norms_of_powers_fall_to_zero_exactly(problems):
    rows = pd.DataFrame(row for problem in problems for row in power_rows(problem, sample=1))
    assert len(rows) == 2 * L
    assert (rows[rows.power == L].norm_frobenius == 0).all() and (rows[rows.power < L].norm_spectral > 0).all()
    assert (rows.norm_spectral <= rows.norm_frobenius * (1 + 1e-12)).all()


def test_the_command_fills_its_tables_and_the_fitted_guess_is_the_nearest(tmp_path):
    probe = build_probe("convergence", samples=2, jacobians=1, iterations=2, initial="zeros,fitted")
    run = run_probe(probe, "digits", tmp_path / "run", LineReporter())
    rows = run.table("convergence")
    assert len(rows) == 6 * 2 * 2 * 3 and set(rows.initial) == {"zeros", "fitted"}
    assert len(run.table("fixed_points")) == 6 * 2 * 2 and len(run.table("jacobians")) == 6 * 64
    start = rows[rows.iteration == 0].groupby(["layer", "initial"]).error_rms.mean().unstack()
    assert (start["fitted"] < start["zeros"]).all()
    assert set(run.table("probes").dtype) == {"float64"}


def test_jacobians_are_left_out_of_large_flows(tmp_path):
    probe = build_probe("convergence", samples=1, iterations=1, initial="zeros")
    run = run_probe(probe, "cifar10", tmp_path / "run", LineReporter())
    assert len(run.table("jacobians")) == 0 and len(run.table("convergence")) == 6 * 2


def test_an_unknown_guess_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(HarnessError, match="did you mean 'zeros'"):
        run_probe(build_probe("convergence", initial="zero"), "digits", tmp_path / "run", LineReporter())
    assert not (tmp_path / "run").exists()
