"""A masked autoregressive flow of the Ising model, by reverse KL from its density over fields; no data are needed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from harness.flows.ising import Ising
from harness.training.config import MafTraining
from harness.training.data import DISTURB, SAMPLES, Batch, seeded
from harness.training.reverse_kl import reverse_kl
from harness.training.targets.base import Decode, device_of
from harness.training.targets.maf import MafTarget

JUDGED = 4096
"""Samples on which a reverse KL is measured, the same at every evaluation."""
OBSERVED = 10_000
"""Exact samples on which a model card states observables."""


class IsingTarget(MafTarget):
    """Fields of the model, see `harness.flows.ising`."""

    measure, unit = "reverse_kl_nats", "nats of reverse KL"
    model: Ising

    def __init__(self, config: MafTraining) -> None:
        assert config.ising is not None
        side, temperature = config.ising.side, config.ising.temperature
        self.model = Ising(side, temperature)
        title = f"the fields of a periodic {side} x {side} Ising model at T = {temperature}"
        super().__init__(config, self.model.sites, title)

    def batch(self, step: int) -> Batch:
        """Draws of the flow's base (B, L)."""
        return (torch.randn(self.config.batch_size, self.features, generator=seeded(self.config.seed, DISTURB, step)),)

    def loss(self, network: nn.Module, *batch: Tensor) -> Tensor:
        """Reverse KL in nats, estimated on a batch; its constant is the exact one, so that 0 is the least."""
        return reverse_kl(network, self.model.log_density, *batch).mean() + self.model.log_integral

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> float:
        noise = torch.randn(JUDGED, self.features, generator=seeded(self.config.seed, SAMPLES))
        estimates = reverse_kl(network, self.model.log_density, noise.to(device_of(network)))
        return float(estimates.mean()) + self.model.log_integral

    def facts(self) -> dict[str, Any]:
        return {"ising": {"side": self.model.side, "temperature": self.model.temperature}}

    def card_rows(self, network: nn.Module, score: float, decode: Decode) -> list[tuple[str, str]]:
        flow, generator = self.flow(network), seeded(self.config.seed, SAMPLES, 1)
        tokens = decode(flow, flow.sample_latents(OBSERVED, generator)).tokens
        rows = [("reverse KL", f"{score:.3f} nats on {JUDGED:,} samples, {self.features} sites")]
        for name, values in self.model.measure(tokens[..., 0], generator).items():
            error = float(values.std()) / math.sqrt(OBSERVED)
            exact, apart = self.model.exact[name], self.model.independent()[name]
            stated = f"{float(values.mean()):.4f} ± {error:.4f}; exact {exact:.4f}; of independent spins {apart:.4f}"
            rows.append((name, stated))
        return rows
