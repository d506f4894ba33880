"""Every test here runs on the CPU, with calls captured by a stand-in, and with the marker `gpu` on a card."""

import pytest
import torch
from replays import Replays

from harness.flows import graphs
from harness.flows.coupled import coupled_tarflow


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # also where there is a card
    elif not torch.cuda.is_available():
        pytest.fail("-m gpu needs a CUDA device")
    return request.param


@pytest.fixture
def stand_in(device, monkeypatch):
    """Captured calls on the CPU too, the stand-in's."""
    if device == "cpu":
        monkeypatch.setattr("harness.decoders.decoder.captures", lambda flow: True)
        monkeypatch.setattr(graphs, "CudaCapture", Replays)


@pytest.fixture
def make():
    """A flow of this seed on a device, the same one each time."""
    return lambda device="cpu", dtype=torch.float32, **options: coupled_tarflow(
        **{"seed": 4, "num_classes": 3} | options
    ).to(device=device, dtype=dtype)
