"""The convergence propositions, on a small flow whose layers are strongly coupled, in float64."""

import pandas as pd
import pytest
import torch

from harness.errors import HarnessError
from harness.flows.tarflow import TarFlow, TarFlowConfig
from harness.probes.convergence import convergence_rows, jacobian_rows, layer_problems, update_jacobian


@pytest.fixture
def flow():
    config = TarFlowConfig(image_channels=1, image_size=8, patch=2, channels=64, blocks=2, layers_per_block=2)
    flow = TarFlow(config).double().requires_grad_(False).eval()
    for block in flow.blocks:
        block.proj_out.weight.normal_(std=0.03)
    return flow


@pytest.fixture
def latents():
    return torch.randn(3, 16, 4, dtype=torch.float64)


def test_after_t_iterations_the_first_t_plus_1_tokens_no_longer_change(flow, latents):
    for problem in layer_problems(flow, latents):
        tokens = torch.randn_like(problem.exact)
        tokens[:, 0] = problem.inputs[:, 0]
        for iteration in range(1, flow.num_tokens):
            tokens, before = problem.update(tokens), tokens
            assert torch.equal(tokens[:, :iteration], before[:, :iteration])
            torch.testing.assert_close(
                tokens[:, : iteration + 1], problem.exact[:, : iteration + 1], rtol=1e-10, atol=1e-10
            )
        assert torch.equal(problem.update(tokens), tokens)  # a fixed point, to the last bit


def test_rows_end_with_the_fixed_point_whatever_the_start(flow, latents):
    rows = pd.DataFrame(convergence_rows(flow, latents))
    assert set(rows.initial) == {"zeros", "normal", "input"} and set(rows["sample"]) == {0, 1, 2}
    last = rows.groupby(["layer", "initial", "sample"]).tail(1)
    assert (last.residual == 0).all() and (last.error_inf < 1e-10).all()
    assert last.iteration.max() <= flow.num_tokens
    first = rows[rows.iteration == 0]
    assert first.residual.isna().all() and (first.error_inf > 0.1).all()


def test_the_jacobian_is_strictly_causal_and_nilpotent(flow, latents):
    problem = next(layer_problems(flow, latents))
    jacobian = update_jacobian(problem)
    blocks = jacobian.reshape(16, 4, 16, 4).abs().amax(dim=(1, 3))
    assert (blocks.triu() == 0).all() and (blocks.tril(-1)[1:].amax(dim=1) > 0).all()
    assert (torch.linalg.matrix_power(jacobian, 16) == 0).all()


def test_the_jacobian_predicts_the_error_of_an_iteration(flow, latents):
    problem = next(layer_problems(flow, latents))
    error = torch.randn_like(problem.exact) * 1e-6
    error[:, 0] = 0
    after = problem.update(problem.exact + error) - problem.update(problem.exact)
    for sample in range(3):
        predicted = update_jacobian(problem, sample) @ error[sample].flatten()
        torch.testing.assert_close(after[sample].flatten(), predicted, rtol=1e-3, atol=1e-10)


def test_norms_of_powers_fall_to_zero_exactly(flow, latents):
    rows = pd.DataFrame(jacobian_rows(flow, latents, samples=2))
    assert len(rows) == 2 * 2 * 16
    assert (rows[rows.power == 16].norm_frobenius == 0).all() and (rows[rows.power == 1].norm_spectral > 0).all()
    assert (rows.norm_spectral <= rows.norm_frobenius * (1 + 1e-12)).all()


def test_an_unknown_guess_is_refused(flow, latents):
    with pytest.raises(HarnessError, match="did you mean 'zeros'"):
        list(convergence_rows(flow, latents, initial=["zero"]))
