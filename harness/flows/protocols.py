"""What every decoder relies on: the protocols of an autoregressive flow, and the condition it is sampled under.

A flow is a stack of K causal layers over a sequence of L tokens. *Decoding order* numbers them from 1, the layer next
to the Gaussian prior and the first one inverted; `block` is the checkpoint's own index, counted from the data side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.registry import Registry


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of the layers' outputs (TarFlow, arXiv 2412.06329, Sec. 3.4).

    A second, unconditional pass gives ``(log_scale_u, shift_u)``; each named component is moved away from it:
    ``log_scale + g * (log_scale - log_scale_u)`` and ``shift + g * (shift - shift_u)``.

    Args:
        scale: the weight w; 0 switches guidance off.
        components: which outputs are guided: ``"a"`` (log_scale), ``"b"`` (shift) or ``"ab"``.
        annealed: g = w * (l + 1) / (L - 1) for the step that produces token l + 1, instead of g = w everywhere.
        temperature: divides the attention logits of the unconditional pass.
    """

    scale: float
    components: str = "ab"
    annealed: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.components not in ("a", "b", "ab"):
            raise HarnessError(f"guidance components must be 'a', 'b' or 'ab', not '{self.components}'")
        if not math.isfinite(self.scale):
            raise HarnessError(f"guidance scale must be a finite number, not {self.scale}")
        if not 0 < self.temperature < math.inf:
            raise HarnessError(f"guidance temperature must be above 0 and finite, not {self.temperature}")


@dataclass(frozen=True)
class Condition:
    """What a batch is sampled under. Decoders pass it on; only flows, and guesses fitted to one, look inside.

    Args:
        labels: (B,) class labels, negative for an unconditional sample, or None when no sample has one.
        guidance: None when switched off.
        masked_lags: keys that attention may not see, by their distance from the query, 0 being its own; None for all
            to be seen. Only from a flow's own `mask_attention`, where it has one: other flows do not heed it.
        rows: (b,) which samples of the batch these are, where only some are left; None for all of them.
    """

    labels: Tensor | None = None
    guidance: Guidance | None = None
    masked_lags: range | None = None
    rows: Tensor | None = None

    @property
    def passes(self) -> int:
        """Network passes behind one call of `affine`: 2 under guidance, else 1."""
        return 1 if self.guidance is None else 2

    def select(self, rows: Tensor) -> Condition:
        """The condition of some of the samples; `rows` indexes the batch."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, labels=labels, rows=rows if self.rows is None else self.rows[rows])


class Kept(dict[Any, Any]):
    """What was made of a flow or a layer and is kept while it lives and stays in place; a copy begins with nothing."""

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


@dataclass(frozen=True)
class Place:
    """Where a window begins, told to the device alone: what one captured call needs to serve many windows.

    Args:
        start: () position of its first token. What the window has beyond the sequence does not count.
        bound: the window and its prefix end here at the latest.
    """

    start: Tensor
    bound: int


class Cache(Protocol):
    """Keys and values of a decoded prefix, allocated once and written in place."""

    @property
    def nbytes(self) -> int: ...


class Explained(NamedTuple):
    """The next tokens that a network call makes, and what the network knew of them.

    Args:
        tokens: (B, V, D) as `CausalLayer.update` gives them.
        scaled: (B, V, D) ``z_in * exp(log_scale)``, the tokens less their shift.
        hidden: (B, V, H) the network's last hidden state, from which log_scale and shift are read off linearly.
    """

    tokens: Tensor
    scaled: Tensor
    hidden: Tensor


@runtime_checkable
class CausalLayer(Protocol):
    """One invertible autoregressive transform: ``x[l] = z_in[l] * exp(log_scale(x[<l])) + shift(x[<l])``.

    Token 0 passes through unchanged. A family whose ``x[l] = step(z_in[l], x[<l])`` is not affine defines `update`
    itself: decoders ask for nothing else, so they decode any such triangular system.
    """

    number: int
    """Place in decoding order, 1..K."""
    block: int
    """Index in the checkpoint."""
    num_tokens: int
    token_dim: int
    capturable: bool = False
    """Whether calls may be captured as CUDA graphs, see `harness.flows.graphs`.

    Then `update` is affine, `affine` takes a `Place` for the start of a window that has a cache, nothing in a call
    depends on what is in a tensor, and there is `reuse_cache`.
    """
    hidden_dim: int = 0
    """H, the numbers of the hidden state that `explain` shows; 0 for a layer that shows none."""
    kept: Kept

    def arrange(self, tokens: Tensor) -> Tensor:
        """Bring (B, L, D) tokens into this layer's autoregressive order."""

    def restore(self, tokens: Tensor) -> Tensor:
        """Undo `arrange`."""

    def new_cache(self, batch: int, condition: Condition) -> Cache:
        """An empty cache with room for all L tokens of `batch` samples."""

    def reuse_cache(self, cache: Any, condition: Condition) -> Any:
        """An empty cache in the memory of one that a layer of the same flow is done with; in place if it is its own."""
        raise HarnessError(f"calls of {type(self).__name__} cannot be captured as CUDA graphs")

    def affine(self, tokens: Tensor, cache: Any, start: int, condition: Condition) -> tuple[Tensor, Tensor]:
        """The parameters of the next tokens, given a window of this layer's outputs.

        Args:
            tokens: (B, W, D), the layer's outputs at positions start..start+W-1, in its own order.
            cache: from `new_cache`, holding the prefix [0, start); the window is written behind it. None is allowed
                at start 0, for a caller that will not come back for the prefix.

        Returns:
            (log_scale, shift), each (B, W, D), for positions start+1..start+W.
        """

    def update(self, inputs: Tensor, tokens: Tensor, cache: Any, start: int, condition: Condition) -> Tensor:
        """The next tokens that one network call makes of a window of this layer's outputs.

        Args:
            inputs: (B, L, D) z_in of the whole layer, in its own order.
            tokens: (B, W, D), as those of `affine`, and so are the rest.
            cache: the prefix [0, start), or None at start 0.

        Returns:
            (B, V, D) the tokens start+1..start+V, V being W, or one less where the sequence ends.
        """
        log_scale, shift = self.affine(tokens, cache, start, condition)
        return affine_update(inputs, log_scale, shift, start)

    def explain(self, inputs: Tensor, tokens: Tensor, cache: Any, start: int, condition: Condition) -> Explained:
        """`update`, and what the network knew: only of a layer with a `hidden_dim`, under no guidance."""
        raise HarnessError(f"layers of type {type(self).__name__} show no hidden state")

    def in_dtype(self, dtype: torch.dtype) -> CausalLayer:
        """The layer with its network in another dtype, the same one each time."""
        raise HarnessError(f"layers of type {type(self).__name__} have no copy in another dtype")


@runtime_checkable
class CausalFlow(Protocol):
    """A stack of causal layers that every decoder can invert."""

    num_layers: int
    num_tokens: int
    token_dim: int
    image_shape: tuple[int, int, int] | None
    """(C, H, W), or None when the data are no images."""
    num_classes: int
    """0 for an unconditional flow."""
    source: Path | None = None
    """The checkpoint's file, or None for a flow that was not loaded: what is fitted to it is found through it."""
    tf32: bool = False
    """Whether products of its networks are made in TF32 while it is decoded, see `harness.flows.precision`."""
    fits: Kept
    """What was fitted to this flow, and read for it, and the captured calls of its layers."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of latents and tokens."""

    @property
    def layers(self) -> Sequence[CausalLayer]: ...

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: ``(latents (B, L, D), logdet (B,))``, latents on the prior's own scale."""

    def sample_latents(self, n: int, generator: Any = None) -> Tensor:
        """(n, L, D) standard normal numbers, before the learned prior scale."""

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Standard normal latents times the learned prior scale, as a new tensor."""

    def to_images(self, tokens: Tensor) -> Tensor | None:
        """(B, L, D) tokens to (B, C, H, W) images, or None when the data are no images."""

    def condition(self, batch: int, labels: Tensor | None = None, guidance: Guidance | None = None) -> Condition:
        """Check labels and guidance against this flow and bind them for `batch` samples."""


@runtime_checkable
class Denoises(Protocol):
    """A flow that was trained on noisy data and can take the noise out of its samples."""

    def denoise(self, images: Tensor, sigma: float, labels: Tensor | None = None, multiplier: float = 1.0) -> Tensor:
        """(B, C, H, W) images less noise of standard deviation `sigma`, by one gradient step on the likelihood."""


@runtime_checkable
class MasksAttention(Protocol):
    """A flow whose attention can be kept from seeing keys."""

    def mask_attention(self, condition: Condition, lags: range) -> Condition:
        """A condition under which no query sees the keys at these distances before it, 0 being its own."""


@runtime_checkable
class ShowsOutputWeights(Protocol):
    """A layer that shows the last linear map of its network."""

    @property
    def output_weights(self) -> tuple[Tensor, Tensor]:
        """(D, C) each: to log_scale and to shift."""


def affine_update(inputs: Tensor, log_scale: Tensor, shift: Tensor, start: int) -> Tensor:
    """``z_in[l] * exp(log_scale[l]) + shift[l]``: (B, L, D) z_in and (B, W, D) parameters from start+1 -> (B, V, D)."""
    target = inputs[:, start + 1 : start + 1 + log_scale.shape[1]]
    count = target.shape[1]
    return torch.addcmul(shift[:, :count], target, log_scale[:, :count].exp())


flows: Registry[Any] = Registry("flow", package="harness.flows", group="harness.flows")
"""Families of flows by name: a class with ``from_state(state, metadata) -> CausalFlow`` and ``recognises(state)``."""
