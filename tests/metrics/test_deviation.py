"""Deviation and reconstruction."""

import numpy as np
import pytest
import torch

from harness.decoders import build_decoder
from harness.errors import HarnessError
from harness.flows.tarflow import TarFlow, TarFlowConfig
from harness.metrics.deviation import Deviation
from harness.metrics.reconstruction import reconstruction


def test_deviation_is_that_of_all_batches_together():
    a, b = torch.randn(10, 3, 4, 4), torch.randn(10, 3, 4, 4)
    deviation = Deviation()
    for rows in torch.arange(10).split(3):
        deviation.add(a[rows], b[rows])
    result = deviation.result()
    assert result["deviation_rmse"] == pytest.approx((a - b).square().mean().sqrt().item(), rel=1e-6)
    assert result["deviation_max"] == (a.double() - b.double()).abs().max().item()


def test_nonfinite_samples_are_left_out_and_counted():
    a, b = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    a[0, 0, 0, 0], b[1, 0, 1, 1] = float("nan"), float("inf")
    deviation = Deviation()
    deviation.add(a, b)
    assert deviation.result() == {
        "deviation_rmse": 1.0, "deviation_low": None, "deviation_high": None, "deviation_max": 1.0,
        "nonfinite_samples": 2,
    }  # fmt: skip


def test_nothing_compared_is_no_deviation():
    deviation = Deviation()
    deviation.add(torch.full((2, 1, 1, 1), float("nan")), torch.zeros(2, 1, 1, 1))
    found = deviation.result()
    assert found.pop("nonfinite_samples") == 2 and set(found.values()) == {None}


@pytest.mark.parametrize(("count", "batch"), [(64, 1), (256, 16), (256, 1)])
def test_the_interval_covers_the_deviation_over_other_latents(count, batch):
    """Samples differ by a factor, and those of a batch stop together: 400 experiments, with a fixed seed."""
    rng, held, spread = np.random.default_rng(count + batch), 0, (0.6, 0.3 if batch > 1 else 0.0)
    truth = np.exp(2 * (spread[0] ** 2 + spread[1] ** 2)) ** 0.5  # the root of the mean square of a lognormal
    for _ in range(400):
        sizes = np.exp(
            spread[0] * rng.normal(size=count) + np.repeat(spread[1] * rng.normal(size=count // batch), batch)
        )
        deviation = Deviation()
        for rows in torch.tensor(sizes)[:, None].split(batch):
            deviation.add(rows, torch.zeros_like(rows))
        low, high = deviation.interval()
        held += low <= truth <= high
    assert held / 400 >= 0.9, "skewed samples and few groups cost some of the 95 %"


def test_other_shapes_are_refused():
    with pytest.raises(HarnessError, match=r"\(2, 3\) with \(3, 2\)"):
        Deviation().add(torch.zeros(2, 3), torch.zeros(3, 2))


@pytest.fixture
def flow():
    """Random weights large enough that tokens depend on each other, and a prior of scales other than 1."""
    flow = TarFlow(TarFlowConfig(1, 8, 2, 64, 3, 1, num_classes=4)).double().eval()
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "proj_out" in name:
                parameter.normal_(std=0.05)
        flow.var.uniform_(0.25, 4.0)
    return flow


def test_exact_decoding_reconstructs(flow):
    images, labels = torch.rand(5, 1, 8, 8, dtype=torch.float64) * 2 - 1, torch.tensor([0, 1, 2, 3, -1])
    deviation = reconstruction(flow, build_decoder("sequential"), images, labels, batch_size=2)
    assert deviation.largest < 1e-9
    assert deviation.nonfinite == 0


def test_inexact_decoding_does_not(flow):
    images, labels = torch.rand(5, 1, 8, 8, dtype=torch.float64) * 2 - 1, torch.tensor([0, 1, 2, 3, -1])
    coarse = build_decoder("ujd", tau=10.0)
    deviation = reconstruction(flow, coarse, images, labels)
    assert deviation.mse > 1e-6
    in_batches = reconstruction(flow, build_decoder("ujd", tau=1e9), images, labels, batch_size=1)
    assert in_batches.mse == pytest.approx(reconstruction(flow, build_decoder("ujd", tau=1e9), images, labels).mse)
