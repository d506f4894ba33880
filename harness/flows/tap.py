"""Watching a decode from outside: a flow that behaves like another and tells an observer what is asked of it.

Decoders need no hooks for being recorded, counted or checked: they decode ``tap(flow, observer)`` as any other flow.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.flows.modules import LayerWrapper
from harness.flows.protocols import (
    Cache,
    CausalFlow,
    CausalLayer,
    Condition,
    Denoises,
    Explained,
    Guidance,
    MasksAttention,
    affine_update,
)


@dataclass(frozen=True)
class Call:
    """One call of a layer's network and its answer. The tensors are the decoder's own: read them, keep no reference.

    Args:
        tokens: (b, W, D) the window.
        start: position of its first token.
        answer: what `CausalLayer.update` gave, (b, V, D) tokens, or `CausalLayer.affine`, log_scale and shift.
    """

    tokens: Tensor
    start: int
    condition: Condition
    answer: Tensor | tuple[Tensor, Tensor]

    def update(self, inputs: Tensor) -> Tensor:
        """(b, V, D) the tokens start+1..start+V that the call gives, from (b, L, D) z_in of its rows."""
        return self.answer if isinstance(self.answer, Tensor) else affine_update(inputs, *self.answer, self.start)

    @property
    def rows(self) -> Tensor | None:
        """(b,) which samples of the batch these are; None for all of them."""
        return self.condition.rows

    @property
    def window(self) -> int:
        return self.tokens.shape[1]

    @property
    def evaluations(self) -> int:
        """Tokens pushed through the network, summed over rows; both passes of guidance count."""
        return len(self.tokens) * self.window * self.condition.passes


class Observer:
    """What a tap reports, as methods to override. `layer` is the layer behind the tap: using it is not observed."""

    def layer_begins(self, layer: CausalLayer, inputs: Tensor) -> None:
        """`layer.arrange` was called and returned (B, L, D) `inputs`: z_in in the layer's own order."""

    def cache_allocated(self, layer: CausalLayer, cache: Cache) -> None:
        """`layer.new_cache` was called and returned `cache`."""

    def evaluated(self, layer: CausalLayer, call: Call) -> None:
        """`layer.update` or `layer.affine` was called; the decoder gets its answer afterwards."""

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
        tally = self.layers.setdefault(layer.number, LayerTally())
        tally.batch, tally.peak_cache_bytes = len(inputs), max(tally.peak_cache_bytes, self.live_cache_bytes)

    def cache_allocated(self, layer: CausalLayer, cache: Cache) -> None:
        self.live_cache_bytes += cache.nbytes
        weakref.finalize(cache, self._released, cache.nbytes)
        tally = self.layers.setdefault(layer.number, LayerTally())
        tally.peak_cache_bytes = max(tally.peak_cache_bytes, self.live_cache_bytes)

    def _released(self, nbytes: int) -> None:
        self.live_cache_bytes -= nbytes

    def evaluated(self, layer: CausalLayer, call: Call) -> None:
        tally = self.layers.setdefault(layer.number, LayerTally(batch=len(call.tokens)))
        tally.calls += 1
        tally.token_evaluations += call.evaluations / tally.batch

    @property
    def peak_cache_bytes(self) -> int:
        return max((tally.peak_cache_bytes for tally in self.layers.values()), default=0)


class _TappedLayer(LayerWrapper):
    def __init__(self, layer: CausalLayer, observer: Observer) -> None:
        super().__init__(layer)
        self._observer = observer

    def arrange(self, tokens: Tensor) -> Tensor:
        inputs = self.layer.arrange(tokens)
        self._observer.layer_begins(self.layer, inputs)
        return inputs

    def restore(self, tokens: Tensor) -> Tensor:
        self._observer.layer_ends(self.layer, tokens)
        return self.layer.restore(tokens)

    def in_dtype(self, dtype: torch.dtype) -> CausalLayer:
        return _TappedLayer(self.layer.in_dtype(dtype), self._observer)

    def new_cache(self, batch: int, condition: Condition) -> Cache:
        cache = self.layer.new_cache(batch, condition)
        self._observer.cache_allocated(self.layer, cache)
        return cache

    def affine(self, tokens: Tensor, cache: Any, start: int, condition: Condition) -> tuple[Tensor, Tensor]:
        answer = self.layer.affine(tokens, cache, start, condition)
        self._observer.evaluated(self.layer, Call(tokens, start, condition, answer))
        return answer

    def update(self, inputs: Tensor, tokens: Tensor, cache: Any, start: int, condition: Condition) -> Tensor:
        answer = self.layer.update(inputs, tokens, cache, start, condition)
        self._observer.evaluated(self.layer, Call(tokens, start, condition, answer))
        return answer

    def explain(self, inputs: Tensor, tokens: Tensor, cache: Any, start: int, condition: Condition) -> Explained:
        answer = self.layer.explain(inputs, tokens, cache, start, condition)
        self._observer.evaluated(self.layer, Call(tokens, start, condition, answer.tokens))
        return answer


class _TappedFlow(CausalFlow):
    def __init__(self, flow: CausalFlow, observer: Observer) -> None:
        self.behind = flow
        self._layers = [_TappedLayer(layer, observer) for layer in flow.layers]
        self.num_layers, self.num_tokens, self.token_dim = flow.num_layers, flow.num_tokens, flow.token_dim
        self.image_shape, self.num_classes = flow.image_shape, flow.num_classes
        self.source: Path | None = flow.source
        self.fits, self.tf32 = flow.fits, flow.tf32
        if isinstance(flow, Denoises):
            self.denoise = flow.denoise
        if isinstance(flow, MasksAttention):
            self.mask_attention = flow.mask_attention

    @property
    def device(self) -> torch.device:
        return self.behind.device

    @property
    def dtype(self) -> torch.dtype:
        return self.behind.dtype

    @property
    def layers(self) -> Sequence[CausalLayer]:
        return self._layers

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.behind.encode(images, labels)

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.behind.sample_latents(n, generator)

    def scale_latents(self, latents: Tensor) -> Tensor:
        return self.behind.scale_latents(latents)

    def to_images(self, tokens: Tensor) -> Tensor | None:
        return self.behind.to_images(tokens)

    def condition(self, batch: int, labels: Tensor | None = None, guidance: Guidance | None = None) -> Condition:
        return self.behind.condition(batch, labels, guidance)
