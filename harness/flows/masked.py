"""A masked multi-layer perceptron, evaluated one window of positions at a time (MADE, arXiv 1502.03509).

Masks let a hidden unit see the inputs at some positions only, and the last of these, its *degree*, is when it can be
computed. Nothing that comes later changes it. So activations are to a masked network what keys and values are to a
transformer: sorted by degree, the units of a window are a run of rows of each weight matrix, the units before them
are in the cache, and decoding position after position costs one forward pass altogether instead of one a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import HarnessError

ACTIVATIONS = ("ReLU", "ELU", "GELU", "SiLU", "Tanh")


class ActivationCache:
    """Activations of the units that a decoded prefix determines: inputs and hidden units of some samples.

    Args:
        buffers: (B, units) per layer, units sorted by degree; the inputs come first.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.buffers = buffers

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def put(self, layer: int, start: int, values: Tensor) -> Tensor:
        """Write (B, n) values behind the first `start` units of a layer; (B, start + n) all units up to there."""
        end = start + values.shape[1]
        self.buffers[layer][:, start:end] = values
        return self.buffers[layer][:, :end]


class MaskedNetwork(nn.Module):
    """The masked network of an autoregressive transform, its units sorted by degree.

    Args:
        hyper: linear layers with a buffer `mask` (out, in), as zuko's, and an elementwise activation between two.
        order: (L,) the input feature at each position.
        outputs: numbers per feature that the last layer gives, side by side.
    """

    def __init__(self, hyper: nn.Sequential, order: Tensor, outputs: int = 2) -> None:
        super().__init__()
        modules: list[Any] = list(hyper)
        linears, activations = modules[::2], modules[1::2]
        if not all(isinstance(linear, nn.Linear) and hasattr(linear, "mask") for linear in linears) or not all(
            type(activation).__name__ in ACTIVATIONS for activation in activations
        ):
            raise HarnessError(
                f"only masked linear layers with {', '.join(ACTIVATIONS)} between them are decoded, not {hyper}"
            )
        self.num_positions, self.outputs = len(order), outputs
        self.activations = nn.ModuleList(activations)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.ends: list[list[int]] = []
        """Units of each layer with a degree of at most 0..L, a list per layer; the inputs come first."""
        columns, degrees = order, torch.arange(1, len(order) + 1, device=order.device)
        self._add_ends(degrees)
        rows_of_outputs = (outputs * order[:, None] + torch.arange(outputs, device=order.device)).flatten()
        for i, linear in enumerate(linears):
            mask = linear.mask[:, columns]
            unsorted = torch.where(mask, degrees, 0).amax(dim=1)
            if linear is linears[-1]:
                rows = rows_of_outputs
                allowed = torch.arange(len(order), device=order.device).repeat_interleave(outputs)
                if bool((unsorted[rows] > allowed).any()):
                    raise HarnessError(
                        "the network is not autoregressive: an output sees its own feature or later ones"
                    )
            else:
                # a unit that sees nothing is constant; it is computed with the first position
                rows = torch.argsort(unsorted.clamp(min=1), stable=True)
            weight, bias = linear.weight.detach() * linear.mask, linear.bias.detach()
            self.weights.append(nn.Parameter(weight[rows][:, columns].clone(), requires_grad=False))
            self.biases.append(nn.Parameter(bias[rows].clone(), requires_grad=False))
            if i < len(activations):
                columns, degrees = rows, unsorted.clamp(min=1)[rows]
                self._add_ends(degrees)

    def _add_ends(self, degrees: Tensor) -> None:
        limits = torch.arange(self.num_positions + 1, device=degrees.device)
        self.ends.append(torch.searchsorted(degrees, limits, right=True).tolist())

    def new_cache(self, batch: int) -> ActivationCache:
        return ActivationCache([self.weights[0].new_zeros(batch, ends[-1]) for ends in self.ends])

    def constants(self) -> Tensor:
        """(outputs,) the outputs for position 0, which sees nothing."""
        return self.biases[-1][: self.outputs]

    def forward(self, window: Tensor, start: int, cache: ActivationCache | None = None) -> Tensor:
        """The outputs for the positions after those of a window.

        Args:
            window: (B, W) inputs at positions start..start+W-1.
            cache: holds what the prefix [0, start) determines; the window is written behind it. None at start 0.

        Returns:
            (B, V, outputs) for positions start+1..start+V; V is W, or one less where the sequence ends.
        """
        end = start + window.shape[1]
        known = window if cache is None else cache.put(0, start, window)
        for i, activation in enumerate(self.activations):
            first, last = self.ends[i + 1][start], self.ends[i + 1][end]
            weight, bias = self.weights[i][first:last, : known.shape[1]], self.biases[i][first:last]
            new = activation(F.linear(known, weight, bias))
            known = new if cache is None else cache.put(i + 1, first, new)
        rows = slice(self.outputs * (start + 1), self.outputs * (end + 1))
        return F.linear(known, self.weights[-1][rows, : known.shape[1]], self.biases[-1][rows]).unflatten(
            1, (-1, self.outputs)
        )
