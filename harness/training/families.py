"""Which loop trains which family of flows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.training.config import TrainingConfig
from harness.training.maf_config import MafConfig


def train(name: str, config: TrainingConfig | MafConfig, folder: Path, **options: Any) -> Path:
    """Train a flow of the configuration's family and release it; the folder with the released files.

    Args:
        name: what the released files are called.
        config: what to train.
        folder: the run folder.
        options: as `harness.training.loop.train` takes them.

    Raises:
        HarnessError: as the family's own loop does.
    """
    if isinstance(config, MafConfig):
        if options.pop("skip_corrupt", False):
            raise HarnessError("masked flows are trained on data that come with a package: there is nothing to skip")
        from harness.training.maf import train_maf

        return train_maf(name, config, folder, **options)
    from harness.training import loop

    return loop.train(name, config, folder, **options)
