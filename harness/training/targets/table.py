"""A masked autoregressive flow of a table that scikit-learn bundles, by maximum likelihood; trained in seconds."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from harness.flows.protocols import CausalFlow
from harness.training.config import MafTraining
from harness.training.data import DISTURB, Batch, Epochs, draw_noise, seeded
from harness.training.likelihood import log_density
from harness.training.targets.base import Decode
from harness.training.targets.maf import MafTarget

TABLES = ("breast-cancer", "wine")
TEST_EVERY = 5


class TableTarget(MafTarget):
    """Rows of a table whose columns are features, standardised by the training rows; every fifth row is held out.

    The noise, in standard deviations, keeps a few hundred rows from being learned by heart.

    Args:
        config: names the table, the noise and the seed.
    """

    measure, unit = "held_out_nats", "nats per feature held out"

    def __init__(self, config: MafTraining) -> None:
        self.train, self.held_out = load_table(str(config.dataset))
        self.epochs = Epochs(len(self.train), config)
        self.digest = hashlib.sha256(self.train.numpy().tobytes()).hexdigest()
        super().__init__(config, self.train.shape[1], f"scikit-learn's table {config.dataset}")

    def batch(self, step: int) -> Batch:
        """Noisy rows (B, L)."""
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
