"""Every test here runs on the CPU, with calls captured by a stand-in, and with the marker `gpu` on a card."""

import pytest
import torch

from harness.flows import graphs
from harness.flows.coupled import coupled_tarflow


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # also where there is a card
    elif not torch.cuda.is_available():
        pytest.fail("-m gpu needs a CUDA device")
    return request.param


def replays(call):
    """A capture that runs the call again, into the same outputs: what a graph does, without one."""
    outputs = tuple(torch.full_like(part, float("nan")) for part in call())

    def replay():
        for kept, new in zip(outputs, call(), strict=True):
            kept.copy_(new)

    return replay, outputs


@pytest.fixture
def stand_in(device, monkeypatch):
    """Captured calls on the CPU too, the stand-in's."""
    if device == "cpu":
        monkeypatch.setattr("harness.decoders.decoder.captures", lambda flow: True)
        monkeypatch.setattr(graphs, "CudaCapture", lambda: replays)


@pytest.fixture
def make():
    """A flow of this seed on a device, the same one each time."""
    return lambda device="cpu", dtype=torch.float32, **options: coupled_tarflow(
        **{"seed": 4, "num_classes": 3} | options
    ).to(device=device, dtype=dtype)
