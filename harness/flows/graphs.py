"""Network calls of a layer as captured CUDA graphs: one launch for the hundred kernels of a small call.

A graph repeats the same kernels on the same memory. So what a call reads and writes is allocated once per batch size
and kept: a buffer for its tokens, one for the labels, and the cache; a graph is captured for each (start, W) when it
is first asked for, and replayed in every later decode of that batch size. Calls whose attention needs a mask that is
not kept (start above 0 and W above 1) are made as they are.

Sound only for layers that say ``capturable``: their calls have no control flow that depends on tokens, and their
cache may be filled again from position 0. Outputs are overwritten by later calls, so a caller uses them first, as
`solve_sequential` and `solve_windows` do.

Written without a GPU at hand: the buffers are tested with a capture that simply runs again; the capture on CUDA never
ran. It is therefore used only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.flows.modules import LayerWrapper
from harness.flows.protocols import CausalLayer, Condition, Explained

Outputs = tuple[Tensor, Tensor]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], Any], Outputs]]
"""Takes a call; returns how to repeat it, and the tensors that its outputs are in each time."""


def cuda_capture(call: Callable[[], Outputs]) -> tuple[Callable[[], Any], Outputs]:
    """Capture a call as a CUDA graph, after it ran twice on a stream of its own, as PyTorch asks for."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph.replay, outputs


@dataclass
class _Buffers:
    """What the graphs of one batch size and condition read and write."""

    condition: Condition
    cache: Any = None
    tokens: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    graphs: dict[tuple[Any, ...], tuple[Callable[[], Any], Outputs]] = field(default_factory=dict)


class GraphedLayer(LayerWrapper):
    """A layer whose calls are replayed; see the module's docstring."""

    def __init__(self, layer: CausalLayer, capture: Capture = cuda_capture) -> None:
        if not layer.capturable:
            raise HarnessError(f"calls of {type(layer).__name__} cannot be captured as CUDA graphs")
        super().__init__(layer)
        self._capture = capture
        self._buffers: dict[tuple[Any, ...], _Buffers] = {}

    def in_dtype(self, dtype: torch.dtype) -> CausalLayer:
        return graphed(self.layer.in_dtype(dtype))

    def new_cache(self, batch: int, condition: Condition) -> Any:
        kept = self._of(batch, condition)
        if kept.cache is None:
            kept.cache = self.layer.new_cache(batch, replace(condition))  # equal to no condition that is passed later
        return kept.cache

    def affine(self, tokens: Tensor, cache: Any, start: int, condition: Condition) -> Outputs:
        batch, window, _ = tokens.shape
        kept = self._of(batch, condition)
        if (start and window > 1) or (cache is not None and cache is not kept.cache):
            return self.layer.affine(tokens, cache, start, condition)
        shape = (window, tokens.dtype)
        if shape not in kept.tokens:
            kept.tokens[shape] = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        given = kept.tokens[shape]
        given.copy_(tokens)
        key = (start, *shape, cache is not None)
        if key not in kept.graphs:
            kept.graphs[key] = self._capture(lambda: self.layer.affine(given, cache, start, kept.condition))
        replay, outputs = kept.graphs[key]
        replay()
        return outputs

    def explain(self, inputs: Tensor, tokens: Tensor, cache: Any, start: int, condition: Condition) -> Explained:
        return self.layer.explain(inputs, tokens, cache, start, condition)  # as it is: corrections need few such calls

    def _of(self, batch: int, condition: Condition) -> _Buffers:
        """What is kept for a batch of such a condition, its labels brought up to date."""
        labels = condition.labels
        key = (batch, condition.guidance, condition.masked_lags, labels is None)
        if key not in self._buffers:
            own = None if labels is None else labels.clone()
            self._buffers[key] = _Buffers(replace(condition, labels=own))
        kept = self._buffers[key]
        if labels is not None and kept.condition.labels is not None:
            kept.condition.labels.copy_(labels)
        return kept


def graphed(layer: CausalLayer) -> CausalLayer:
    """The layer with its calls captured, the same one each time."""
    if GraphedLayer not in layer.kept:
        layer.kept[GraphedLayer] = GraphedLayer(layer)
    return layer.kept[GraphedLayer]
