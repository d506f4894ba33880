"""What a masked autoregressive flow is trained towards: images by maximum likelihood, a density by reverse KL.

Every random number of step t follows from the seed and t alone, as in `harness.training.data`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.datasets import load_dataset
from harness.flows.ising import Ising
from harness.flows.zuko_flow import ZukoFlow
from harness.training.data import DISTURB, SAMPLES, seeded
from harness.training.likelihood import Splits, bits_per_dim, draw_noise
from harness.training.maf_config import MafConfig
from harness.training.reverse_kl import reverse_kl

JUDGED = 4096
"""Samples on which a reverse KL is measured, the same at every evaluation."""
OBSERVED = 10_000
"""Exact samples on which a model card states observables."""


class Target(Protocol):
    """What is trained towards."""

    features: int
    measure: str
    """Column of the curve: what `evaluate` returns."""
    unit: str

    def loss(self, maf: nn.Module, step: int) -> Tensor:
        """What the step, counted from 0, minimises; a scalar in nats."""
        ...

    def evaluate(self, maf: nn.Module) -> float:
        """How good the flow is, on data or draws that no step sees."""
        ...

    def flow(self, maf: nn.Module) -> ZukoFlow:
        """The flow of a copy of zuko's, as it is decoded."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a checkpoint's metadata says beside its tensors."""
        ...

    def title(self) -> str:
        """What was trained on, as a model card's first sentence ends."""
        ...

    def results(self, maf: nn.Module, decode: Any) -> list[tuple[str, str]]:
        """Rows of the model card's table."""
        ...


def target_of(config: MafConfig, root: Path | None = None) -> Target:
    """The target that a configuration names.

    Raises:
        HarnessError: its images cannot be read.
    """
    return ImageTarget(config, root) if config.ising is None else IsingTarget(config)


class ImageTarget:
    """Maximum likelihood of dequantised images (arXiv 1705.07057); a pixel is a feature.

    Args:
        config: names the dataset, the noise and the seed.
        root: where the dataset lies.
    """

    measure, unit = "held_out_bits_per_dim", "bits/dim held out"

    def __init__(self, config: MafConfig, root: Path | None = None) -> None:
        assert config.dataset is not None
        self.config = config
        self.splits = Splits.of(
            load_dataset(config.dataset, "train", root=root), load_dataset(config.dataset, "test", root=root), config
        )
        self.shape = tuple(self.splits.train.pixels.shape[1:])
        self.features = math.prod(self.shape)

    def loss(self, maf: nn.Module, step: int) -> Tensor:
        """Negative log-likelihood per dimension of a batch drawn with replacement."""
        generator = seeded(self.config.seed, DISTURB, step)
        rows = torch.randint(len(self.splits.train), (self.config.batch_size,), generator=generator)
        images = self.splits.train.scaled(rows)
        images = images + draw_noise(images.shape, self.config, generator)
        return -maf().log_prob(images.flatten(1)).mean() / self.features

    def evaluate(self, maf: nn.Module) -> float:
        """Bits per dimension of the held-out images."""
        return self.splits.held_out_bits_per_dim(self.flow(maf))

    def flow(self, maf: nn.Module) -> ZukoFlow:
        """A flow of images."""
        return ZukoFlow(maf, image_shape=self.shape)  # type: ignore[arg-type]

    def facts(self) -> dict[str, Any]:
        """The images' shape and digest, and the noise."""
        return {
            "image_shape": self.shape,
            "dataset": self.config.dataset,
            "dataset_digest": self.splits.train.digest,
            "noise": self.config.noise,
            "sigma": self.config.sigma,
        }

    def title(self) -> str:
        """The images."""
        return f"{' x '.join(map(str, self.shape))} images of {self.config.dataset}"

    def results(self, maf: nn.Module, decode: Any) -> list[tuple[str, str]]:
        """Bits per dimension, beside those of pixels that ignore each other."""
        splits, config, flow = self.splits, self.config, self.flow(maf)
        train = bits_per_dim(flow, self._as_many(), splits.levels, config)
        return [
            ("training images", f"{config.dataset}, {len(splits.train):,}, SHA-256 {splits.train.digest[:16]}"),
            ("held-out bits/dim", f"{self.evaluate(maf):.4f} on {len(splits.held_out):,} images of the test split"),
            ("of these, the noise's own", f"{splits.noise_bits_per_dim():.4f}, the least that any flow can reach"),
            ("training bits/dim", f"{train:.4f} on as many training images"),
            (
                "bits/dim of independent pixels",
                f"{self.independent_bits_per_dim():.4f}, exact where a flow's are a bound",
            ),
            ("noise", f"{config.noise}, sigma {config.sigma} in image units ([-1, 1])"),
        ]

    def _as_many(self) -> Any:
        train = self.splits.train
        return type(train)(train.pixels[: len(self.splits.held_out)])

    def independent_bits_per_dim(self) -> float:
        """Code length of the held-out pixels when each has the training images' own frequencies, one count added."""
        levels = self.splits.train.pixels.unique()
        train = torch.stack([(self.splits.train.pixels == level).sum(0) + 1 for level in levels]).double()
        frequency = train / train.sum(dim=0)
        held_out = torch.stack([self.splits.held_out.pixels == level for level in levels]).double()
        return -float((held_out * frequency.log2()[:, None]).sum(dim=0).mean())


class IsingTarget:
    """Reverse KL from the Ising model's density over fields, see `harness.flows.ising`.

    Args:
        config: names the lattice, the temperature and the seed.
    """

    measure, unit = "reverse_kl_nats", "nats of reverse KL"

    def __init__(self, config: MafConfig) -> None:
        assert config.ising is not None
        self.config = config
        self.model = Ising(config.ising.side, config.ising.temperature)
        self.features = self.model.sites

    def loss(self, maf: nn.Module, step: int) -> Tensor:
        """Reverse KL in nats, estimated on a batch; its constant is the exact one, so that 0 is the least."""
        noise = torch.randn(self.config.batch_size, self.features, generator=seeded(self.config.seed, DISTURB, step))
        return reverse_kl(maf, self.model.log_density, noise).mean() + self.model.log_integral

    @torch.no_grad()
    def evaluate(self, maf: nn.Module) -> float:
        """Reverse KL in nats on draws of its own."""
        noise = torch.randn(JUDGED, self.features, generator=seeded(self.config.seed, SAMPLES))
        return float(reverse_kl(maf, self.model.log_density, noise).mean()) + self.model.log_integral

    def flow(self, maf: nn.Module) -> ZukoFlow:
        """A flow of fields."""
        return ZukoFlow(maf, target=self.model)

    def facts(self) -> dict[str, Any]:
        """The lattice and its temperature."""
        return {"ising": {"side": self.model.side, "temperature": self.model.temperature}}

    def title(self) -> str:
        """The model."""
        side = self.model.side
        return f"the fields of a periodic {side} x {side} Ising model at T = {self.model.temperature}"

    def results(self, maf: nn.Module, decode: Any) -> list[tuple[str, str]]:
        """The divergence, and observables beside their exact values."""
        flow, generator = self.flow(maf), seeded(self.config.seed, SAMPLES, 1)
        tokens = decode(flow, flow.sample_latents(OBSERVED, generator)).tokens
        rows = [("reverse KL", f"{self.evaluate(maf):.3f} nats on {JUDGED:,} samples, {self.features} sites")]
        for name, values in self.model.measure(tokens[..., 0], generator).items():
            error = float(values.std()) / math.sqrt(OBSERVED)
            exact, apart = self.model.exact[name], self.model.independent()[name]
            rows.append(
                (name, f"{float(values.mean()):.4f} ± {error:.4f}; exact {exact:.4f}; of independent spins {apart:.4f}")
            )
        return rows
