"""Network calls of a flow's layers as captured CUDA graphs: one launch for the hundred kernels of a small call.

A graph repeats the same kernels on the same memory. So what calls read and write is allocated once for each kind of
batch and shared by all layers: a buffer for tokens, one for the labels, keys and values. All graphs of a flow take what
they need besides from one pool, since none runs beside another. A graph of a window on a prefix serves many of them:
where it begins is a number on the device, it looks at the cache up to the next eighth of the sequence, and windows are
filled up, see `covering`. A call is captured when it is first asked for, and replayed in every later decode.

Sound only for layers that say ``capturable``. What a graph puts out is overwritten by later ones, so callers are given
what was made of it, or a copy. A flow that moves to another device or dtype leaves its graphs behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.flows.modules import LayerWrapper
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, Explained, Place, affine_update

Call = Callable[[], tuple[Tensor, ...]]
Capture = Callable[[Call], tuple[Callable[[], Any], tuple[Tensor, ...]]]
"""Takes a call; returns how to repeat it, and the tensors that its outputs are in each time."""

KINDS = 4
"""Kinds of batch that are kept at a time; the one that was unused for longest goes."""
PARTS = 8
"""Of a sequence, at whose ends the captured attention to a prefix may end."""


class CudaCapture:
    """Captures calls as CUDA graphs of one memory pool, each after it ran twice on a stream aside, as PyTorch asks."""

    def __init__(self) -> None:
        self._pool, self._aside = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def __call__(self, call: Call) -> tuple[Callable[[], Any], tuple[Tensor, ...]]:
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = call()
        return graph.replay, outputs


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Tensors made here may be written to later in any mode of autograd; no gradient is recorded."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@dataclass
class _Kind:
    """What the graphs of one kind of batch read and write."""

    condition: Condition
    start: Tensor  # () where the window at hand begins
    caches: dict[int, Any] = field(default_factory=dict)  # by number of the layer, all in the same memory
    cache: Any = None  # the one in use
    buffers: dict[Any, Tensor] = field(default_factory=dict)
    graphs: dict[Any, tuple[Callable[[], Any], tuple[Tensor, ...]]] = field(default_factory=dict)

    def given(self, name: str, tokens: Tensor, size: int, length: int) -> Tensor:
        """(B, size, D) what a graph reads, in a buffer for `length` tokens: (B, W, D) tokens, and zeros behind them."""
        (batch, window, dim), key = tokens.shape, (name, tokens.dtype)
        if key not in self.buffers:
            with ordinary_tensors():
                self.buffers[key] = tokens.new_zeros(batch * length * dim)
        given = self.buffers[key][: batch * size * dim].view(batch, size, dim)
        given[:, :window] = tokens
        if size > window:
            given[:, window:] = 0
        return given


class Graphs:
    """The captured calls of one flow."""

    def __init__(self, device: torch.device, capture: Capture | None = None) -> None:
        self.device, self.capture = device, capture or CudaCapture()
        self.kinds: dict[Any, _Kind] = {}
        self._layers: dict[Any, GraphedLayer] = {}

    def layer(self, layer: CausalLayer, dtype: torch.dtype | None = None) -> GraphedLayer:
        """A layer with its calls captured, the same one each time; `dtype` is that of its network, None for its own."""
        if (layer.number, dtype) not in self._layers:
            self._layers[layer.number, dtype] = GraphedLayer(layer, self, dtype)
        return self._layers[layer.number, dtype]

    def kind(self, batch: int, condition: Condition, dtype: torch.dtype | None) -> _Kind:
        """What is kept for a batch of such a condition, its labels brought up to date."""
        labels = condition.labels
        key = (batch, condition.guidance, labels is None, dtype)
        kept = self.kinds.pop(key, None)
        if kept is None:
            with ordinary_tensors():
                own = None if labels is None else labels.clone()
                kept = _Kind(replace(condition, labels=own), torch.zeros((), dtype=torch.long, device=self.device))
        elif labels is not None and kept.condition.labels is not None:
            kept.condition.labels.copy_(labels)
        self.kinds[key] = kept
        while len(self.kinds) > KINDS:
            del self.kinds[next(iter(self.kinds))]
        return kept


class GraphedLayer(LayerWrapper):
    """A layer whose calls are replayed, but for some that are rare, see `_captured`."""

    def __init__(self, layer: CausalLayer, graphs: Graphs, dtype: torch.dtype | None = None) -> None:
        if not layer.capturable:
            raise HarnessError(f"calls of {type(layer).__name__} cannot be captured as CUDA graphs")
        super().__init__(layer)
        self._graphs, self._dtype = graphs, dtype
        self._solved: _Kind | None = None  # what the last cache belongs to

    def in_dtype(self, dtype: torch.dtype) -> CausalLayer:
        return self._graphs.layer(self.layer.in_dtype(dtype), dtype)

    def new_cache(self, batch: int, condition: Condition) -> Any:
        if not _captured(condition):
            return self.layer.new_cache(batch, condition)
        kept = self._solved = self._graphs.kind(batch, condition, self._dtype)
        with ordinary_tensors():
            taken = kept.caches.get(self.number) or next(iter(kept.caches.values()), None)
            if taken is None:
                taken = self.layer.new_cache(batch, kept.condition)
            kept.cache = kept.caches[self.number] = self.layer.reuse_cache(taken, kept.condition)
        return kept.cache

    def affine(self, tokens: Tensor, cache: Any, start: int, condition: Condition) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(tokens, cache, start, condition)
        return log_scale.clone(), shift.clone()

    def update(self, inputs: Tensor, tokens: Tensor, cache: Any, start: int, condition: Condition) -> Tensor:
        return affine_update(inputs, *self._affine(tokens, cache, start, condition), start)

    def explain(self, inputs: Tensor, tokens: Tensor, cache: Any, start: int, condition: Condition) -> Explained:
        if cache is not None or not _captured(condition):  # few decoders explain a window, and none many of them
            return self.layer.explain(inputs, tokens, cache, start, condition)
        kept, window = self._kept(len(tokens), cache, condition), tokens.shape[1]
        whole = kept.given("inputs", inputs, self.num_tokens, self.num_tokens)
        given = kept.given("tokens", tokens, window, self.num_tokens)
        key = ("explain", window, tokens.dtype)
        known = self._replay(kept, key, lambda: self.layer.explain(whole, given, None, start, kept.condition))
        return Explained(*(part.clone() for part in known))

    def _affine(self, tokens: Tensor, cache: Any, start: int, condition: Condition) -> tuple[Tensor, Tensor]:
        """What `affine` gives, in memory that the next call of any layer may overwrite."""
        if not _captured(condition):
            return self.layer.affine(tokens, cache, start, condition)
        kept, window = self._kept(len(tokens), cache, condition), tokens.shape[1]
        size, bound = window, 0
        place: Any = start
        if cache is not None:
            size, bound = covering(window, start, self.num_tokens)
            kept.start.fill_(start)
            place = Place(kept.start, bound)
        given = kept.given("tokens", tokens, size, self.num_tokens)
        log_scale, shift = self._replay(
            kept, (size, bound, tokens.dtype), lambda: self.layer.affine(given, cache, place, kept.condition)
        )
        return log_scale[:, :window], shift[:, :window]

    def _kept(self, batch: int, cache: Any, condition: Condition) -> _Kind:
        """What a call is made in. Raises ValueError: its cache is one in whose memory another solve has begun."""
        if cache is None:
            return self._graphs.kind(batch, condition, self._dtype)
        if self._solved is None or cache is not self._solved.cache:
            raise ValueError(f"the cache of layer {self.number} was given to another solve")
        return self._solved

    def _replay(self, kept: _Kind, key: Any, call: Call) -> tuple[Tensor, ...]:
        key = (self.number, torch.get_float32_matmul_precision(), *key)  # a graph repeats its products as they were
        if key not in kept.graphs:
            kept.graphs[key] = self._graphs.capture(call)
        replay, outputs = kept.graphs[key]
        replay()
        return outputs


def covering(window: int, start: int, length: int) -> tuple[int, int]:
    """(tokens, keys) of the captured call that serves a window on a prefix, in a sequence of so many tokens.

    Short windows are filled up to the next power of two, longer ones, and prefix and window together, to the next
    eighth of the sequence. So windows of one token need eight graphs.

    >>> covering(1, 31, 256), covering(1, 32, 256), covering(31, 0, 256), covering(100, 120, 256)
    ((1, 32), (1, 64), (32, 32), (128, 224))
    """
    step = -(-length // PARTS)
    size = 1 << (window - 1).bit_length() if window <= step else -(-window // step) * step
    return min(size, length), min(-(-(start + window) // step) * step, length)


def captures(flow: CausalFlow) -> bool:
    """Whether calls of a flow's layers can be captured: on the current CUDA device, and where nobody watches them."""
    here = flow.device.type == "cuda" and flow.device.index == torch.cuda.current_device()
    return here and any(layer.capturable for layer in flow.layers)


def graphs_of(flow: CausalFlow) -> Graphs:
    """The captured calls of a flow, kept for as long as it lives."""
    if Graphs not in flow.fits:
        flow.fits[Graphs] = Graphs(flow.device)
    return flow.fits[Graphs]


def graphed(flow: CausalFlow) -> Sequence[CausalLayer]:
    """The layers of a flow, those whose calls can be captured with their calls captured."""
    return [graphs_of(flow).layer(layer) if layer.capturable else layer for layer in flow.layers]


def _captured(condition: Condition) -> bool:
    """Not where attention is masked, which probes do, nor where samples have dropped out, which leaves any number."""
    return condition.masked_lags is None and condition.rows is None
