"""A causal transformer over pixels as discrete tokens, by maximum likelihood (see `harness.flows.discrete`)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from harness.datasets import Images
from harness.flows.discrete import DiscreteFlow
from harness.training.config import DiscreteTraining
from harness.training.likelihood import Splits
from harness.training.targets.base import Decode, ImageTarget

BATCH = 100
"""Images whose likelihood is measured together."""


class DiscreteTarget(ImageTarget):
    """Images as they are; distorted ones are read with every pixel at its nearest level."""

    config: DiscreteTraining
    note = (
        "Bits per dimension are the code length of the discrete pixels, exact where a flow's are a bound; they are "
        "those of the averaged weights as stored, given the labels where there are classes."
    )

    def __init__(self, config: DiscreteTraining, splits: Splits) -> None:
        super().__init__(config, splits)
        shape = " x ".join(map(str, splits.train.pixels.shape[1:]))
        self.description = (
            f"A causal transformer ({config.channels}-{config.layers}: channels, layers) over the {len(splits.levels)} "
            f"grey levels of {shape} images of {config.dataset} as discrete tokens, {self.classes}"
        )

    def network(self) -> DiscreteFlow:
        """With the frequency of every pixel's levels in the training images, one count added, as its unigrams."""
        train, levels = self.splits.train.scaled(), self.splits.levels
        counts = torch.stack([((train - level).abs() < 1e-6).sum(dim=0) for level in levels]) + 1.0
        unigram = (counts / counts.sum(dim=0)).log()
        return DiscreteFlow(levels, unigram, self.config.channels, self.config.layers, self.num_classes)

    def loss(self, network: Any, *batch: Tensor) -> Tensor:
        images, labels = batch
        log_p, found = network.log_probabilities(images, labels if network.num_classes else None)
        return -log_p.gather(2, found[..., None]).mean()

    def evaluate(self, network: Any) -> float:
        return self.bits_per_dim(network, self.splits.held_out)

    @torch.no_grad()
    def bits_per_dim(self, network: Any, images: Images) -> float:
        """Code length of the pixels, in bits, averaged over images."""
        total = 0.0
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            labels = images.labels[rows] if network.num_classes and images.labels is not None else None
            clean = images.scaled(rows).to(network.device)
            total -= float(network.encode(clean, labels)[1].sum())
        return total / len(images) / math.log(2)

    def card_rows(self, network: Any, score: float, decode: Decode) -> list[tuple[str, str]]:
        count = len(self.splits.held_out)
        learned = self.bits_per_dim(network, self.splits.train.first(count))
        return [
            *self.splits.image_rows(self.config.dataset),
            ("held-out bits/dim", f"{score:.4f} on {count:,} images of the test split"),
            ("training bits/dim", f"{learned:.4f} on as many training images"),
        ]
