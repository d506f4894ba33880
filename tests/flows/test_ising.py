"""The Ising model against sums over all its states."""

import math

import pytest
import torch

from harness.errors import HarnessError
from harness.flows.ising import Ising

BETA = 1 / 3.0


def states(sites: int) -> torch.Tensor:
    return 2.0 * (torch.arange(2**sites)[:, None] >> torch.arange(sites) & 1).double() - 1


@pytest.mark.parametrize("side", [3, 4])
def test_exact_observables_are_the_sums_over_all_states(side):
    model, spins = Ising(side, 3.0), states(side**2)
    observed = model.observables(spins)
    logits = -BETA * side**2 * observed["energy"]
    assert float(model.log_partition(torch.tensor(BETA, dtype=torch.float64))) == pytest.approx(
        float(logits.logsumexp(0)), rel=1e-12
    )
    for name, values in observed.items():
        assert model.exact[name] == pytest.approx(float((logits.softmax(0) * values).sum()), rel=1e-10)
        assert model.independent()[name] == pytest.approx(float(values.mean()), abs=1e-12)


def test_energy_counts_every_bond_of_the_periodic_lattice_once():
    checkerboard = torch.tensor([1.0, -1, 1, -1, -1, 1, -1, 1] * 2)
    stripes = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1] * 2)
    values = Ising(4, 3.0).observables(torch.stack([torch.ones(16), checkerboard, stripes]))
    assert values["energy"].tolist() == [-2, 2, 0]
    assert values["abs_magnetisation"].tolist() == [1, 0, 0]


def test_the_density_is_the_joint_weight_summed_over_spins():
    model, fields = Ising(3, 3.0), torch.randn(5, 9, dtype=torch.float64) * 2
    quadratic = 0.5 * torch.einsum("bi,ij,bj->b", fields, model.precision, fields)
    summed = (fields @ states(9).T).logsumexp(dim=1) - quadratic
    torch.testing.assert_close(model.log_density(fields), summed, rtol=1e-12, atol=1e-12)


def test_the_integral_is_that_of_the_density():
    """By importance sampling from a normal distribution as wide as the fields."""
    model = Ising(3, 3.0)
    spread = model.coupling + 1.5 * model.coupling @ model.coupling
    proposal = torch.distributions.MultivariateNormal(torch.zeros(9, dtype=torch.float64), spread)
    fields = proposal.sample((200_000,))
    log_weights = model.log_density(fields) - proposal.log_prob(fields)
    found = float(log_weights.logsumexp(0)) - math.log(len(fields))
    error = float((log_weights - log_weights.max()).exp().std() / (log_weights - log_weights.max()).exp().mean())
    assert found == pytest.approx(model.log_integral, abs=4 * error / math.sqrt(len(fields)))


def test_spins_drawn_from_exact_fields_have_the_boltzmann_distribution():
    model, generator, count = Ising(4, 3.0), torch.Generator().manual_seed(0), 40_000
    spins = states(16)
    weights = (-BETA * 16 * model.observables(spins)["energy"]).softmax(0)
    drawn = spins[torch.multinomial(weights, count, replacement=True, generator=generator)]
    noise = torch.randn(count, 16, generator=generator, dtype=torch.float64)
    fields = drawn @ model.coupling + noise @ torch.linalg.cholesky(model.coupling).T  # x given s is N(A s, A)
    for name, values in model.measure(fields, generator).items():
        assert float(values.mean()) == pytest.approx(model.exact[name], abs=4 * float(values.std()) / count**0.5)


def test_the_magnetisations_weights_are_symmetric_probabilities():
    weights = Ising(5, 2.5).magnetisation_weights()
    assert float(weights.min()) >= 0
    assert float(weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(weights, weights.flip(0), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("side", "temperature"), [(2, 3.0), (11, 3.0), (4, 0.0), (4, math.nan)])
def test_what_is_no_such_model_is_refused(side, temperature):
    with pytest.raises(HarnessError):
        Ising(side, temperature)
