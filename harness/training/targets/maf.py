"""Masked autoregressive flows, zuko's `MAF` (arXiv 1705.07057): what they have in common, and by maximum likelihood
those of dequantised images and of tables that scikit-learn bundles, which are trained in seconds.
"""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.flows.ising import Ising
from harness.flows.protocols import CausalFlow
from harness.flows.zuko_flow import ZukoFlow, checkpoint_metadata
from harness.metrics.likelihood import draw_noise, log_density
from harness.training.config import MafTraining
from harness.training.data import DISTURB, Batch, Epochs, seeded
from harness.training.likelihood import NOTE, Splits
from harness.training.targets.base import COLUMNS, Decode, Samples, Target, draw_images

TABLES = ("breast-cancer", "wine")
TEST_EVERY = 5
"""Every fifth row of a table is held out."""


class MafTarget(Target):
    """A target whose network is a `MAF` of so many `features`, trained on `data`, which is said in words."""

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
        activation = getattr(nn, self.config.activation)
        return MAF(
            self.features, transforms=self.config.transforms, hidden_features=self.config.hidden, activation=activation
        )

    def loss(self, network: nn.Module, *batch: Tensor) -> Tensor:
        loss: Tensor = -network().log_prob(batch[0].flatten(1)).mean() / self.features
        return loss

    def flow(self, network: nn.Module) -> ZukoFlow:
        return ZukoFlow(copy.deepcopy(network).cpu(), self.image_shape, self.model)

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a checkpoint's metadata says beside its tensors and the training."""

    def metadata(self, facts: dict[str, Any]) -> dict[str, str]:
        dataset = self.config.dataset or "ising"
        facts = self.facts() | facts | {"seed": self.config.seed}
        return checkpoint_metadata(self.config.activation, **facts) | {"dataset": dataset}


class MafImages(MafTarget):
    """Images whose pixels are features."""

    measure, unit, note = "held_out_bits_per_dim", "held-out bits/dim", NOTE

    def __init__(self, config: MafTraining, splits: Splits) -> None:
        channels, height, width = splits.train.pixels.shape[1:]
        self.splits, self.image_shape, self.digest = splits, (channels, height, width), splits.train.digest
        self.tested = splits.tested
        super().__init__(
            config, channels * height * width, f"{channels} x {height} x {width} images of {config.dataset}"
        )

    def batch(self, step: int) -> Batch:
        """Noisy images (B, C, H, W), drawn with replacement."""
        generator, train = seeded(self.config.seed, DISTURB, step), self.splits.train
        images = train.scaled(torch.randint(len(train), (self.config.batch_size,), generator=generator))
        return (images + draw_noise(images.shape, self.config, generator),)

    def evaluate(self, network: nn.Module) -> float:
        return self.splits.held_out_bits_per_dim(self.flow(network))

    def facts(self) -> dict[str, Any]:
        facts = {"image_shape": self.image_shape, "dataset": self.config.dataset, "dataset_digest": self.digest}
        return facts | self.config.model_dump(include={"noise", "sigma"})

    def card_rows(self, network: nn.Module, score: float, decode: Decode) -> list[tuple[str, str]]:
        """Bits per dimension, beside those of pixels that ignore each other."""
        independent = f"{self.independent_bits_per_dim():.4f}, exact where a flow's are a bound"
        rows = self.splits.card_rows(self.flow(network), str(self.config.dataset), score)
        return [*rows, ("bits/dim of independent pixels", independent)]

    def samples(self, network: nn.Module, decode: Decode) -> Samples:
        return Samples(draw_images(self.flow(network), decode, self.config.seed), COLUMNS, "unconditional")

    def independent_bits_per_dim(self) -> float:
        """Code length of the held-out pixels when each has the training images' own frequencies, one count added."""
        levels = self.splits.train.pixels.unique()
        train = torch.stack([(self.splits.train.pixels == level).sum(0) + 1 for level in levels]).double()
        frequency = train / train.sum(dim=0)
        held_out = torch.stack([self.splits.held_out.pixels == level for level in levels]).double()
        return -float((held_out * frequency.log2()[:, None]).sum(dim=0).mean())


class TableTarget(MafTarget):
    """Rows of a table whose columns are features, standardised by the training rows; every fifth row is held out.

    The noise, in standard deviations, keeps a few hundred rows from being learned by heart.
    """

    measure, unit = "held_out_nats", "nats per feature held out"

    def __init__(self, config: MafTraining) -> None:
        self.train, self.held_out = load_table(str(config.dataset))
        self.epochs = Epochs(len(self.train), config)
        self.digest = hashlib.sha256(self.train.numpy().tobytes()).hexdigest()
        super().__init__(config, self.train.shape[1], f"scikit-learn's table {config.dataset}")

    def batch(self, step: int) -> Batch:
        rows = self.train[self.epochs.rows(step)]
        return (rows + draw_noise(rows.shape, self.config, seeded(self.config.seed, DISTURB, step)),)

    def evaluate(self, network: nn.Module) -> float:
        return self.nats(self.flow(network))

    @torch.no_grad()
    def nats(self, flow: CausalFlow) -> float:
        """Negative log-likelihood of the held-out rows, nats per feature; a standard normal has 1.42."""
        return -float(log_density(flow, self.held_out).mean())

    def facts(self) -> dict[str, Any]:
        return {"table": self.config.dataset, "dataset_digest": self.digest, "sigma": self.config.sigma}

    def card_rows(self, network: nn.Module, score: float, decode: Decode) -> list[tuple[str, str]]:
        return [
            ("training rows", f"{self.config.dataset}, {len(self.train)}, SHA-256 {self.digest[:16]}"),
            ("held-out nats per feature", f"{score:.4f} on {len(self.held_out)} rows; a standard normal has 1.42"),
            ("noise", f"{self.config.noise}, sigma {self.config.sigma} in standard deviations of a feature"),
        ]


def load_table(name: str) -> tuple[Tensor, Tensor]:
    """(N, L) training and held-out rows of one of `TABLES`."""
    from sklearn import datasets

    load = {"breast-cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[name]
    rows = torch.from_numpy(load().data)
    held_out = torch.arange(len(rows)) % TEST_EVERY == TEST_EVERY - 1
    mean, std = rows[~held_out].mean(0), rows[~held_out].std(0)
    scaled = ((rows - mean) / std).float()
    return scaled[~held_out], scaled[held_out]
