"""Masked autoregressive flows of tables that scikit-learn bundles, trained in seconds.

    python -m harness.training.tabular breast-cancer --out harness/flows/assets/maf-breast-cancer.safetensors

Each feature is standardised by the training rows. The same seed gives the same file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import unknown
from harness.flows.protocols import CausalFlow
from harness.flows.zuko_flow import checkpoint_metadata

TEST_EVERY = 5
HIDDEN, TRANSFORMS = (64, 64), 5
NOISE = 0.05
"""Standard deviation of the noise added to each batch; without it a few hundred rows are soon learned by heart."""


def _sources() -> dict[str, Callable[[], object]]:
    from sklearn.datasets import load_breast_cancer, load_wine

    return {"breast-cancer": load_breast_cancer, "wine": load_wine}


def load_table(name: str) -> tuple[Tensor, Tensor]:
    """(N, L) training and held-out rows, every fifth, standardised by the training rows.

    Raises:
        HarnessError: no such table.
    """
    sources = _sources()
    if name not in sources:
        raise unknown("table", name, sources)
    rows = torch.from_numpy(sources[name]().data)  # type: ignore[attr-defined]
    held_out = torch.arange(len(rows)) % TEST_EVERY == TEST_EVERY - 1
    mean, std = rows[~held_out].mean(0), rows[~held_out].std(0)
    scaled = ((rows - mean) / std).float()
    return scaled[~held_out], scaled[held_out]


def train_maf(name: str, out: Path, epochs: int = 100, seed: int = 0) -> float:
    """Train a MAF by maximum likelihood and store it.

    Args:
        name: of a table that `load_table` knows.
        out: safetensors file.
        epochs: over the training rows, in batches of 64.
        seed: of weights, order and noise.

    Returns:
        Negative log-likelihood of the held-out rows, nats per feature.
    """
    from zuko.flows import MAF

    torch.manual_seed(seed)
    train, test = load_table(name)
    flow = MAF(features=train.shape[1], transforms=TRANSFORMS, hidden_features=HIDDEN)
    optimiser = torch.optim.AdamW(flow.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(64):
            loss = -flow().log_prob(train[rows] + NOISE * torch.randn(len(rows), train.shape[1])).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    with torch.no_grad():
        held_out = -float(flow().log_prob(test).mean()) / test.shape[1]
    metadata = checkpoint_metadata("ReLU", table=name, epochs=epochs, seed=seed, held_out_nats=round(held_out, 4))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(flow.state_dict(), out, metadata=metadata)
    return held_out


@torch.no_grad()
def held_out_loss(name: str, flow: CausalFlow) -> float:
    """Negative log-likelihood of a table's held-out rows under a flow, nats per feature; a standard normal has 1.42.

    Computed through `encode`: the latents, on the prior's scale, are brought to a standard normal first.
    """
    _, test = load_table(name)
    latents, logdet = flow.encode(test)
    origin = flow.scale_latents(torch.zeros_like(latents[:1]))
    scale = flow.scale_latents(torch.ones_like(latents[:1])) - origin
    standard = (latents - origin) / scale
    nats = 0.5 * standard.square().mean(dim=(1, 2)) + scale.log().mean() - logdet + 0.5 * math.log(2 * math.pi)
    return float(nats.mean())


@click.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--epochs", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(name: str, out: Path, epochs: int, seed: int) -> None:
    """Train a masked autoregressive flow on the table NAME."""
    click.echo(f"{out}: {train_maf(name, out, epochs, seed):.4f} nats per feature on held-out rows")


if __name__ == "__main__":
    main()
