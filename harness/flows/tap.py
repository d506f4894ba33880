"""Watching a decode from outside: a flow that behaves like another and tells an observer what is asked of it.

Decoders need no hooks for being recorded, counted or checked: they decode ``tap(flow, observer)`` as any other flow.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from harness.flows.precision import in_dtype
from harness.flows.protocols import Cache, CausalFlow, CausalLayer, Condition, Guidance


@dataclass(frozen=True)
class Call:
    """One call of `CausalLayer.affine` and its answer. The tensors are the decoder's own: read them, keep no reference.

    Args:
        tokens: (b, W, D) the window.
        start: position of its first token.
        log_scale: (b, W, D) for positions start+1..start+W.
        shift: (b, W, D), likewise.
        condition: what the rows were sampled under.
        rows: (b,) which samples of the batch these are; None for all of them.
    """

    tokens: Tensor
    start: int
    log_scale: Tensor
    shift: Tensor
    condition: Condition
    rows: Tensor | None

    @property
    def window(self) -> int:
        """W, the tokens evaluated."""
        return self.tokens.shape[1]

    @property
    def evaluations(self) -> int:
        """Tokens pushed through the network, summed over rows; both passes of guidance count."""
        return len(self.tokens) * self.window * self.condition.passes


class Observer:
    """What a tap tells, as methods to override. `layer` is the layer behind the tap: using it is not observed."""

    def layer_begins(self, layer: CausalLayer, inputs: Tensor) -> None:
        """`layer.arrange` was called and returned (B, L, D) `inputs`: z_in in the layer's own order."""

    def cache_allocated(self, layer: CausalLayer, cache: Cache) -> None:
        """`layer.new_cache` was called and returned `cache`."""

    def evaluated(self, layer: CausalLayer, call: Call) -> None:
        """`layer.affine` was called; told before the decoder gets its answer."""

    def layer_ends(self, layer: CausalLayer, outputs: Tensor) -> None:
        """`layer.restore` was called on (B, L, D) `outputs`, in the layer's own order."""


def tap(flow: CausalFlow, observer: Observer) -> CausalFlow:
    """A flow that answers exactly as `flow` does and reports to `observer`.

    Only the layers are observed; `encode` and whatever else the flow offers is passed on unseen.

    Example:
        >>> from harness.decoders import build_decoder
        >>> from harness.flows.tarflow import TarFlow, TarFlowConfig
        >>> config = TarFlowConfig(image_channels=1, image_size=8, patch=2, channels=64, blocks=2, layers_per_block=1)
        >>> flow, tally = TarFlow(config), Tally()
        >>> _ = build_decoder("sequential").decode(tap(flow, tally), flow.sample_latents(3))
        >>> tally.layers[1].token_evaluations, tally.layers[1].calls
        (15.0, 15)
    """
    return _TappedFlow(flow, observer)


def untapped(flow: CausalFlow) -> CausalFlow:
    """The flow behind any taps: for work on a flow that is no part of the decode being watched."""
    while isinstance(flow, _TappedFlow):
        flow = flow.behind
    return flow


@dataclass
class LayerTally:
    """Deterministic costs of one layer, counted from outside the decoder."""

    token_evaluations: float = 0.0
    """Per sample."""
    calls: int = 0
    """Of the network."""
    batch: int = 0
    peak_cache_bytes: int = 0
    """The most bytes of caches alive at once while this layer was solved."""


@dataclass
class Tally(Observer):
    """Counts token evaluations, network calls and live cache bytes of every layer."""

    layers: dict[int, LayerTally] = field(default_factory=dict)
    """By place in decoding order."""
    live_cache_bytes: int = 0

    def layer_begins(self, layer: CausalLayer, inputs: Tensor) -> None:
        """Learn the batch size, and what caches are still alive."""
        tally = self.layers.setdefault(layer.number, LayerTally())
        tally.batch, tally.peak_cache_bytes = len(inputs), max(tally.peak_cache_bytes, self.live_cache_bytes)

    def cache_allocated(self, layer: CausalLayer, cache: Cache) -> None:
        """Count the bytes for as long as the cache lives."""
        self.live_cache_bytes += cache.nbytes
        weakref.finalize(cache, self._released, cache.nbytes)
        tally = self.layers.setdefault(layer.number, LayerTally())
        tally.peak_cache_bytes = max(tally.peak_cache_bytes, self.live_cache_bytes)

    def _released(self, nbytes: int) -> None:
        self.live_cache_bytes -= nbytes

    def evaluated(self, layer: CausalLayer, call: Call) -> None:
        """Count the call and its tokens."""
        tally = self.layers.setdefault(layer.number, LayerTally(batch=len(call.tokens)))
        tally.calls += 1
        tally.token_evaluations += call.evaluations / tally.batch

    @property
    def peak_cache_bytes(self) -> int:
        """The most bytes of caches alive at once."""
        return max((tally.peak_cache_bytes for tally in self.layers.values()), default=0)


@dataclass(frozen=True)
class _TracedCondition(Condition):
    """A condition that remembers which rows of the batch it was narrowed to."""

    rows: Tensor | None = None

    @classmethod
    def of(cls, condition: Condition) -> _TracedCondition:
        return cls(**{entry.name: getattr(condition, entry.name) for entry in fields(Condition)})

    def select(self, rows: Tensor) -> Condition:
        """As `Condition.select`, keeping count of the rows."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, labels=labels, rows=rows if self.rows is None else self.rows[rows])


class _TappedLayer:
    def __init__(self, layer: CausalLayer, observer: Observer) -> None:
        self._layer, self._observer = layer, observer
        self.number, self.block = layer.number, layer.block
        self.num_tokens, self.token_dim = layer.num_tokens, layer.token_dim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def arrange(self, tokens: Tensor) -> Tensor:
        inputs = self._layer.arrange(tokens)
        self._observer.layer_begins(self._layer, inputs)
        return inputs

    def restore(self, tokens: Tensor) -> Tensor:
        self._observer.layer_ends(self._layer, tokens)
        return self._layer.restore(tokens)

    def in_dtype(self, dtype: torch.dtype) -> CausalLayer:
        return _TappedLayer(in_dtype(self._layer, dtype), self._observer)

    def new_cache(self, batch: int, condition: Condition) -> Cache:
        cache = self._layer.new_cache(batch, condition)
        self._observer.cache_allocated(self._layer, cache)
        return cache

    def affine(self, tokens: Tensor, cache: Any, start: int, condition: Condition) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._layer.affine(tokens, cache, start, condition)
        rows = getattr(condition, "rows", None)
        self._observer.evaluated(self._layer, Call(tokens, start, log_scale, shift, condition, rows))
        return log_scale, shift


class _TappedFlow:
    def __init__(self, flow: CausalFlow, observer: Observer) -> None:
        self._flow = self.behind = flow
        self.layers: Sequence[CausalLayer] = [_TappedLayer(layer, observer) for layer in flow.layers]
        self.num_layers, self.num_tokens, self.token_dim = flow.num_layers, flow.num_tokens, flow.token_dim
        self.image_shape, self.num_classes = flow.image_shape, flow.num_classes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._flow, name)

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._flow.encode(images, labels)

    def sample_latents(self, n: int, generator: Any = None) -> Tensor:
        return self._flow.sample_latents(n, generator)

    def scale_latents(self, latents: Tensor) -> Tensor:
        return self._flow.scale_latents(latents)

    def to_images(self, tokens: Tensor) -> Tensor | None:
        return self._flow.to_images(tokens)

    def condition(self, batch: int, labels: Tensor | None = None, guidance: Guidance | None = None) -> Condition:
        return _TracedCondition.of(self._flow.condition(batch, labels, guidance))
