"""Latents with the exact samples that belong to them, and the layers of a flow seen apart, each with its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.decoders.decoder import Decoder, DecodeResult
from harness.decoders.sequential import Sequential
from harness.decoders.solver import solve_sequential
from harness.flows.calls import jacobi_update
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, Explained, Guidance

TOGETHER, TOKENS = 64, 2**16
"""Samples of a network call where only results matter, on a CPU; tokens of one on a GPU, which fewer do not fill."""


def samples_together(flow: CausalFlow) -> int:
    """How many samples a network call takes where only results matter."""
    return TOGETHER if flow.device.type == "cpu" else max(1, TOKENS // flow.num_tokens)


@dataclass(frozen=True)
class LayerProblem:
    """One layer with its exact input and output for some latents.

    Args:
        inputs: (B, L, D) z_in, in the layer's own order.
        exact: (B, L, D) its sequential output.
        size: samples in a network call; None for all.
    """

    layer: CausalLayer
    inputs: Tensor
    exact: Tensor
    condition: Condition
    size: int | None = None

    def update(self, tokens: Tensor) -> Tensor:
        """F: (B, L, D) -> (B, L, D), one Jacobi iteration."""
        return torch.cat(
            [
                jacobi_update(self.layer, self.inputs[rows], tokens[rows], condition)
                for rows, condition in parts_of(self.condition, len(tokens), self.size)
            ]
        )

    def explain(self, tokens: Tensor) -> Explained:
        """`update`, and what the network knew, of all L tokens; of token 0, which is given, it knew nothing."""
        known = [
            self.layer.explain(self.inputs[rows], tokens[rows, :-1], None, 0, condition)
            for rows, condition in parts_of(self.condition, len(tokens), self.size)
        ]
        update, *others = (torch.cat(part) for part in zip(*known, strict=True))
        return Explained(
            torch.cat([self.inputs[:, :1], update], dim=1), *(F.pad(part, (0, 0, 1, 0)) for part in others)
        )

    def select(self, rows: Tensor) -> LayerProblem:
        """The problem of some of the samples; `rows` (n,) indexes the batch and may name one several times."""
        return LayerProblem(self.layer, self.inputs[rows], self.exact[rows], self.condition.select(rows), self.size)


@dataclass(frozen=True)
class ExactBatch:
    """A batch of a flow's latents, and the exact samples that belong to it, computed when they are first asked for.

    Args:
        latents: (B, L, D) standard normal numbers.
        size: samples decoded together for the exact ones; None for all.
    """

    flow: CausalFlow
    latents: Tensor
    labels: Tensor | None = None
    guidance: Guidance | None = None
    size: int | None = None

    @classmethod
    def draw(cls, flow: CausalFlow, count: int, generator: torch.Generator, size: int | None = None) -> ExactBatch:
        """Latents with classes drawn uniformly where the flow has any."""
        latents = flow.sample_latents(count, generator)
        if not flow.num_classes:
            return cls(flow, latents, size=size)
        labels = torch.randint(flow.num_classes, (count,), generator=generator).to(flow.device)
        return cls(flow, latents, labels, size=size)

    def __len__(self) -> int:
        return len(self.latents)

    @cached_property
    def condition(self) -> Condition:
        return self.flow.condition(len(self), self.labels, self.guidance)

    @cached_property
    def exact(self) -> Tensor:
        return self.decode(Sequential(), self.size)

    def result(self, decoder: Decoder) -> DecodeResult:
        """What a decoder makes of the batch, all of it decoded together."""
        return decoder.decode(self.flow, self.latents, self.labels, self.guidance)

    def decode(self, decoder: Decoder, size: int | None = None) -> Tensor:
        """(B, L, D) tokens, so many samples decoded together, by default all."""
        return torch.cat([part.result(decoder).tokens for part in self.split(size)])

    def squared(self, decoder: Decoder, size: int | None = None) -> Tensor:
        """(B,) mean squared deviation of each sample from the exact one, in float64."""
        return (self.decode(decoder, size) - self.exact).double().square().mean(dim=(1, 2))

    def split(self, size: int | None) -> Iterator[ExactBatch]:
        """Batches of so many of the samples."""
        for first in range(0, len(self), size or len(self)):
            yield self.select(slice(first, first + (size or len(self))))

    def select(self, rows: slice | Tensor) -> ExactBatch:
        labels = None if self.labels is None else self.labels[rows]
        return ExactBatch(self.flow, self.latents[rows], labels, self.guidance, self.size)

    @torch.no_grad()
    def layers(self, told: Callable[[int], object] = lambda samples: None) -> Iterator[LayerProblem]:
        """Every layer in decoding order, with its input in exact decoding; `told` of samples as they come."""
        tokens = self.flow.scale_latents(self.latents)
        for layer, called in zip(self.flow.layers, Sequential().called(self.flow), strict=True):
            inputs = layer.arrange(tokens)
            exact = self._solved(called, inputs, told)
            yield LayerProblem(layer, inputs, exact, self.condition, self.size)
            tokens = layer.restore(exact)

    def finished(self, layer: CausalLayer, output: Tensor, told: Callable[[int], object]) -> Tensor:
        """(B, L, D) samples where a layer put out this, in its own order, and all after it are decoded sequentially."""
        tokens = layer.restore(output)
        for later in Sequential().called(self.flow)[layer.number :]:
            tokens = later.restore(self._solved(later, later.arrange(tokens), told))
        return tokens

    def _solved(self, layer: CausalLayer, inputs: Tensor, told: Callable[[int], object]) -> Tensor:
        solved = []
        for rows, condition in parts_of(self.condition, len(self), self.size):
            with torch.inference_mode():  # as decodes, whose graphs these are
                solved.append(solve_sequential(layer, inputs[rows], condition)[0])
            told(len(solved[-1]))
        return torch.cat(solved)


def parts_of(condition: Condition, batch: int, size: int | None) -> Iterator[tuple[slice, Condition]]:
    """Slices of a batch, each of so many samples, with their conditions; one of all for None."""
    if size is None or size >= batch:
        yield slice(None), condition
        return
    for first in range(0, batch, size):
        rows = slice(first, min(first + size, batch))
        yield rows, condition.select(torch.arange(first, rows.stop))
