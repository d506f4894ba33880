"""Noise on images whose pixels are discrete, and the bits per dimension that a flow of the noisy images gives them.

A flow is a density p(v) of noisy images v = x + noise, not a probability of the images x, whose pixels take one of a
few levels. Drawing v and then reading each pixel of x off its own pixel of v, with the probability
``P(x | v) = q(v | x) / sum over levels k of q(v | k)``, q being the noise, is a model of the images themselves, and

``-log2 P(x) <= E_q(v|x) [ -log2 p(v) + sum over dimensions of log2 (sum over levels k of q(v | k)) ]``

Whatever the flow, the bound is at least the entropy of the noise plus that second term, which grows with the width of
the noise: figures of flows trained with different noise are no ranking of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from harness.datasets import Images, to_unit
from harness.flows.protocols import CausalFlow

DRAWS = 4
"""Of noise, that bits per dimension are averaged over: of one alone the third decimal is noise."""


class Dequantisation(Protocol):
    """The noise that is added to data, such as a training's configuration states it."""

    noise: Literal["gaussian", "uniform"]
    sigma: float  # standard deviation of Gaussian noise, half the width of uniform noise, in image units ([-1, 1])
    seed: int


@dataclass
class Noise(Dequantisation):
    """A `Dequantisation` by itself."""

    noise: Literal["gaussian", "uniform"]
    sigma: float
    seed: int


def levels_of(*images: Images) -> Tensor:
    """(levels,) the values in [-1, 1] that pixels take: 17 in the digits, 256 in photographs."""
    return to_unit(torch.cat([one.pixels.unique() for one in images]).unique())


def draw_noise(shape: torch.Size, config: Dequantisation, generator: torch.Generator) -> Tensor:
    """Noise in the data's units, on the generator's device."""
    if config.noise == "gaussian":
        return torch.randn(shape, generator=generator, device=generator.device) * config.sigma
    return (torch.rand(shape, generator=generator, device=generator.device) * 2 - 1) * config.sigma


def log_noise_mass(noisy: Tensor, levels: Tensor, config: Dequantisation) -> Tensor:
    """``log sum over levels k of q(v | k)``, the mean over the dimensions of each image: (B, C, H, W) -> (B,)."""
    total = torch.zeros_like(noisy, dtype=torch.float64)
    for level in levels:  # one at a time: 256 copies of a batch would not fit
        distance = (noisy - level).double() / config.sigma
        if config.noise == "gaussian":
            total += torch.exp(-0.5 * distance.square()) / (config.sigma * math.sqrt(2 * math.pi))
        else:
            total += (distance.abs() <= 1 + 1e-5) / (2 * config.sigma)  # noise on the very edge, rounded outwards
    return total.log().mean(dim=(1, 2, 3))


def log_density(flow: CausalFlow, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Log density per dimension of data under a flow, in nats: (B, ...) -> (B,), in float64 on the CPU."""
    latents, logdet = flow.encode(images, labels)
    origin = flow.scale_latents(torch.zeros_like(latents[:1]))
    scale = flow.scale_latents(torch.ones_like(latents[:1])) - origin
    latents, logdet, origin, scale = (x.cpu().double() for x in (latents, logdet, origin, scale))
    squares = ((latents - origin) / scale).square() + 2 * scale.log() + math.log(2 * math.pi)
    return logdet - 0.5 * squares.mean(dim=(1, 2))


@torch.no_grad()
def bits_per_dim(
    flow: CausalFlow, images: Images, levels: Tensor, config: Dequantisation, batch_size: int = 100, draws: int = DRAWS
) -> float:
    """The bound above, in bits per dimension, averaged over images and draws of noise by the config's seed.

    Labels are used when the flow has classes; `batch_size` changes the memory taken, not the noise.
    """
    generator = torch.Generator().manual_seed(config.seed)
    total = 0.0
    for start in [*range(0, len(images), batch_size)] * draws:
        clean = images.scaled(slice(start, start + batch_size))
        noisy = (clean + draw_noise(clean.shape, config, generator)).to(flow.device)
        labels = images.labels[start : start + batch_size] if flow.num_classes and images.labels is not None else None
        nats = log_noise_mass(noisy, levels, config).cpu() - log_density(flow, noisy, labels)
        total += float(nats.sum())
    return total / len(images) / draws / math.log(2)
