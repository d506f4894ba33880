"""The error of every network call: how far a layer's iterate is from its exact output, watched through a tap."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor

from harness.decoders import DecodeResult, LayerTrace
from harness.decoders.sequential import solve_sequential
from harness.flows.protocols import CausalLayer, Condition
from harness.flows.tap import Call, Observer

PERCENTILES = (10, 50, 90)
"""Of the errors, over samples."""


@dataclass
class _Watched:
    """One layer: its inputs, its exact outputs for them, the iterate so far, and each call's errors per sample."""

    inputs: Tensor
    exact: Tensor
    iterate: Tensor
    largest: list[Tensor] = field(default_factory=list)
    rms: list[Tensor] = field(default_factory=list)


@dataclass
class ErrorRecorder(Observer):
    """Records, after every network call, the error of the iterate.

    The iterate starts as z_in; each call gives the tokens start+1..start+W of the samples it was made for. With whole
    windows that is the Jacobi iterate; with windows of one token it is the sequential method with the tokens not yet
    decoded taken as z_in (the curves of arXiv 2505.24791, Fig. 4). It is read from the calls alone, so a correction
    that a decoder applies to its tokens shows from the next call on.

    The exact output comes from sequential decoding of the layer for the very inputs that it was given.
    """

    condition: Condition
    """What the whole batch is sampled under."""
    layers: dict[int, _Watched] = field(default_factory=dict)

    def layer_begins(self, layer: CausalLayer, inputs: Tensor) -> None:
        exact, _ = solve_sequential(layer, inputs, self.condition)
        self.layers[layer.number] = _Watched(inputs.clone(), exact, inputs.clone())

    def evaluated(self, layer: CausalLayer, call: Call) -> None:
        watched = self.layers[layer.number]
        rows = slice(None) if call.rows is None else call.rows
        update = call.update(watched.inputs[rows])
        watched.iterate[rows, call.start + 1 : call.start + 1 + update.shape[1]] = update
        difference = (watched.iterate - watched.exact).float()
        watched.largest.append(difference.abs().amax(dim=(1, 2)))
        watched.rms.append(difference.square().mean(dim=(1, 2)).sqrt())

    def rows(self, result: DecodeResult) -> list[dict[str, float | int | None]]:
        """Rows of the table `residuals`, cells' columns aside; residuals are those of the layers' traces."""
        called = [trace for trace in result.layers if trace.layer in self.layers and self.layers[trace.layer].rms]
        return [row for trace in called for row in self._layer_rows(trace)]

    def _layer_rows(self, trace: LayerTrace) -> list[dict[str, float | int | None]]:
        watched = self.layers[trace.layer]
        largest, rms = torch.stack(watched.largest), torch.stack(watched.rms)  # (calls, B)
        errors = {"error_inf": largest.amax(dim=1), "error_rms": rms.square().mean(dim=1).sqrt()}
        for percent in PERCENTILES:
            errors[f"error_rms_p{percent}"] = torch.quantile(rms, percent / 100, dim=1)
        calls = zip_longest(trace.residuals[: len(rms)], *(values.tolist() for values in errors.values()))
        return [
            {"layer": trace.layer, "iteration": call, "residual": residual, **dict(zip(errors, values, strict=True))}
            for call, (residual, *values) in enumerate(calls, start=1)
        ]
