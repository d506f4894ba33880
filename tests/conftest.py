"""What several tests share."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """Development data beside the project; absent on most machines."""
    if not SHARED.is_dir():
        pytest.skip("development data (../shared) is not on this machine")
    return SHARED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
