"""What several tests share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in child processes: tests are small

import tempfile
from pathlib import Path

import pytest
import torch

# Locks of devices lie here: nothing is timed in tests, so they wait for no measurement that this machine is busy with,
# and not for each other where several processes share the tests.
_OWNER = f"{getattr(os, 'getuid', int)()}-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
_FOLDER = Path(os.environ.get("HARNESS_TESTS", tempfile.gettempdir())) / f"harness-tests-{_OWNER}"
_FOLDER.mkdir(exist_ok=True)
os.environ.setdefault("HARNESS_TESTS", str(_FOLDER.parent))  # of the processes that share the tests, too
os.environ["TMPDIR"], tempfile.tempdir = str(_FOLDER), None

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """Development data beside the project; absent on most machines."""
    if not SHARED.is_dir():
        pytest.skip("development data (../shared) is not on this machine")
    return SHARED


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ran before, and however wide the terminal is."""
    torch.manual_seed(0)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small class-conditional TarFlow of 8x8 images with random weights: L = 16, K = 2."""
    from safetensors.torch import save_file

    from harness.flows.tarflow import TarFlow, TarFlowConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TarFlowConfig(
            image_channels=1, image_size=8, patch=2, channels=64, blocks=2, layers_per_block=1, num_classes=10
        )
        flow = TarFlow(config)
        for layer in flow.layers:
            torch.nn.init.normal_(layer.proj_out.weight, std=0.05)
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save_file(flow.state_dict(), path)
    return path
