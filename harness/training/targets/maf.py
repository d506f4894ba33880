"""What masked autoregressive flows have in common: zuko's `MAF`, by maximum likelihood unless a target has its own."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from harness.errors import HarnessError
from harness.flows.ising import Ising
from harness.flows.zuko_flow import ZukoFlow, checkpoint_metadata
from harness.training.config import MafTraining
from harness.training.targets.base import Target


class MafTarget(Target):
    """A target whose network is a `MAF`.

    Args:
        config: the flow's shape.
        features: numbers that it models jointly.
        data: what it is trained on, in words.

    Raises:
        HarnessError: a hidden layer is too narrow for every feature to count.
    """

    config: MafTraining
    image_shape: tuple[int, int, int] | None = None
    """(C, H, W) where the data are images, whose pixels are the features."""
    model: Ising | None = None
    """What the flow is to draw from, where that is known."""

    def __init__(self, config: MafTraining, features: int, data: str) -> None:
        self.config, self.features = config, features
        if min(config.hidden) < features - 1:
            raise HarnessError(
                f"hidden = {list(config.hidden)}: layers of a network of {features} features need {features - 1} "
                "units or more, or the later features would see only the first ones"
            )
        hidden = f"hidden layers of {', '.join(map(str, config.hidden))} units, {config.activation}"
        self.description = f"A masked autoregressive flow built with zuko ({hidden}) of {data}"

    def network(self) -> nn.Module:
        try:
            from zuko.flows import MAF
        except ImportError as error:
            raise HarnessError("training it needs zuko: pip install 'nf-decoding-harness[zuko]'") from error
        return MAF(
            features=self.features,
            transforms=self.config.transforms,
            hidden_features=self.config.hidden,
            activation=getattr(nn, self.config.activation),
        )

    def loss(self, network: nn.Module, *batch: Tensor) -> Tensor:
        """Negative log-likelihood per feature of the data."""
        (data,) = batch
        loss: Tensor = -network().log_prob(data.flatten(1)).mean() / self.features
        return loss

    def flow(self, network: nn.Module) -> ZukoFlow:
        """The flow of a copy on the CPU."""
        return ZukoFlow(copy.deepcopy(network).cpu(), self.image_shape, self.model)

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a checkpoint's metadata says beside its tensors and the training."""

    def metadata(self, facts: dict[str, Any]) -> dict[str, str]:
        dataset = self.config.dataset or "ising"
        facts = self.facts() | facts | {"seed": self.config.seed}
        return checkpoint_metadata(self.config.activation, **facts) | {"dataset": dataset}
