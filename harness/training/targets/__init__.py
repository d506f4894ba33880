"""What is trained and how it is judged: one small file per target."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError
from harness.training.config import DiscreteTraining, FlowTraining, ImageTraining
from harness.training.likelihood import Splits
from harness.training.targets.base import Decode, Samples, Target
from harness.training.targets.discrete import DiscreteTarget
from harness.training.targets.ising import IsingTarget
from harness.training.targets.maf import TABLES, MafImages, TableTarget
from harness.training.targets.tarflow import TarFlowTarget

__all__ = ["Decode", "Samples", "Target", "target_of"]


def target_of(config: FlowTraining, root: Path | None = None, skip_corrupt: bool = False) -> Target:
    """The target that a configuration names, its data loaded as `load_dataset` does.

    Data that cannot be read, or fit no flow of that shape, are a `HarnessError`.
    """
    if isinstance(config, ImageTraining):
        splits = Splits.load(config, config.dataset, config.size, root, skip_corrupt)
        return DiscreteTarget(config, splits) if isinstance(config, DiscreteTraining) else TarFlowTarget(config, splits)
    if config.dataset is not None and config.dataset not in TABLES:
        return MafImages(config, Splits.load(config, config.dataset, None, root, skip_corrupt))
    if skip_corrupt:
        raise HarnessError("this flow is not trained on images: there are no corrupt ones to skip")
    return IsingTarget(config) if config.dataset is None else TableTarget(config)
