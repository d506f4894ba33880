"""Reverse KL against automatic differentiation of zuko's own inverse, pass by pass."""

import pytest
import torch

from harness.flows.ising import Ising
from harness.training.reverse_kl import fixed_point, reverse_kl, sample

zuko = pytest.importorskip("zuko", reason="the optional extra zuko is not installed")

MODEL = Ising(3, 3.0)


def coupled():
    maf = zuko.flows.MAF(features=9, transforms=3, hidden_features=(18,))
    with torch.no_grad():
        for transform in maf.transform.transforms:
            for linear in (transform.hyper[0], transform.hyper[-1]):
                linear.weight *= 2
    return maf.double()


def gradients(maf, loss):
    maf.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in maf.parameters()])


def test_value_and_gradient_are_those_of_the_unrolled_inverse():
    maf, noise = coupled(), torch.randn(7, 9, dtype=torch.float64)
    loss = reverse_kl(maf, MODEL.log_density, noise)
    samples = maf().transform.inv(noise)
    wanted = maf().log_prob(samples) - MODEL.log_density(samples)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-3)
    # Only the direct dependence of log q on the parameters is left out, whose mean is zero.
    path = wanted - maf().log_prob(samples.detach())
    found, expected = gradients(maf, loss.mean()), gradients(maf, path.mean())
    assert float((found - expected).abs().max()) <= 1e-3 * float(expected.abs().max())


def test_samples_solve_every_layer():
    maf, noise = coupled(), torch.randn(7, 9, dtype=torch.float64)
    with torch.no_grad():
        found = sample(maf, noise)
    torch.testing.assert_close(maf().transform(found), noise, rtol=1e-3, atol=1e-3)


def test_a_strictly_causal_map_is_solved_after_as_many_steps_as_it_has_features():
    shift = torch.tril(torch.full((6, 6), 3.0, dtype=torch.float64), -1)
    calls = []

    def update(tokens):
        calls.append(1)
        return tokens @ shift.T + 1

    found = fixed_point(update, torch.zeros(1, 6, dtype=torch.float64))
    torch.testing.assert_close(found, torch.linalg.solve(torch.eye(6).double() - shift, torch.ones(6).double())[None])
    assert len(calls) <= 6


def test_training_brings_the_flow_to_the_model():
    maf, generator = zuko.flows.MAF(features=9, transforms=3, hidden_features=(32,)), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(maf.parameters(), lr=1e-2)
    divergences = []
    for _ in range(80):
        loss = reverse_kl(maf, MODEL.log_density, torch.randn(128, 9, generator=generator)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        divergences.append(float(loss.detach()) + MODEL.log_integral)
    last = sum(divergences[-10:]) / 10
    assert -0.02 < last < 0.2 * divergences[0]
