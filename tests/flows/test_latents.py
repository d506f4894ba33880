import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.flows import load_flow
from harness.flows.latents import cycling_labels, indexed_latents


@pytest.fixture(scope="module")
def flow(tiny_checkpoint):
    return load_flow(tiny_checkpoint)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
def test_a_sample_does_not_depend_on_its_batch(flow, seed, indices):
    together = indexed_latents(flow, seed, indices)
    for row, index in enumerate(indices):
        assert torch.equal(together[row], indexed_latents(flow, seed, [index])[0])


def test_seeds_and_indices_give_different_numbers_that_are_standard_normal(flow):
    draws = torch.cat([indexed_latents(flow, seed, range(40)) for seed in (0, 1, 2**40)])
    assert len(draws.flatten(1).unique(dim=0)) == 120
    assert stats.kstest(draws.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(draws.flatten(1))[0, 1:]).max() < 0.7


def test_labels_take_turns(flow):
    assert cycling_labels(flow, range(8, 13)).tolist() == [8, 9, 0, 1, 2]
