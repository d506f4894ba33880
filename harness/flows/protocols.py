"""What every decoder relies on: the protocols of an autoregressive flow, and the condition it is sampled under.

A flow is a stack of K causal layers over a sequence of L tokens. *Decoding order* numbers them from 1, the layer next
to the Gaussian prior and the first one inverted; `block` is the checkpoint's own index, counted from the data side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

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
        if not self.temperature > 0:
            raise HarnessError(f"guidance temperature must be above 0, not {self.temperature}")


@dataclass(frozen=True)
class Condition:
    """What a batch is sampled under. Decoders pass it on; only flows, and guesses fitted to one, look inside.

    Args:
        labels: (B,) class labels, negative for an unconditional sample, or None when no sample has one.
        guidance: None when switched off.
        masked_lags: keys that attention may not see, by their distance from the query, 0 being its own; None for all
            to be seen. Only from a flow's own `mask_attention`, where it has one: other flows do not heed it.
    """

    labels: Tensor | None = None
    guidance: Guidance | None = None
    masked_lags: range | None = None

    @property
    def passes(self) -> int:
        """Network passes behind one call of `affine`: 2 under guidance, else 1."""
        return 1 if self.guidance is None else 2

    def select(self, rows: Tensor) -> Condition:
        """The condition of some of the samples; `rows` indexes the batch."""
        return self if self.labels is None else replace(self, labels=self.labels[rows])


class Cache(Protocol):
    """Keys and values of a decoded prefix, allocated once and written in place."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        ...


@runtime_checkable
class CausalLayer(Protocol):
    """One invertible autoregressive transform: ``x[l] = z_in[l] * exp(log_scale(x[<l])) + shift(x[<l])``.

    Token 0 passes through unchanged. `number` is the layer's place in decoding order (1..K), `block` its index in the
    checkpoint.
    """

    number: int
    block: int
    num_tokens: int
    token_dim: int

    def arrange(self, tokens: Tensor) -> Tensor:
        """Bring (B, L, D) tokens into this layer's autoregressive order."""
        ...

    def restore(self, tokens: Tensor) -> Tensor:
        """Undo `arrange`."""
        ...

    def new_cache(self, batch: int, condition: Condition) -> Cache:
        """An empty cache with room for all L tokens of `batch` samples."""
        ...

    def affine(self, tokens: Tensor, cache: Any, start: int, condition: Condition) -> tuple[Tensor, Tensor]:
        """The parameters of the next tokens, given a window of this layer's outputs.

        Args:
            tokens: (B, W, D), the layer's outputs at positions start..start+W-1, in its own order.
            cache: from `new_cache`, holding the prefix [0, start); the window is written behind it. None is allowed
                at start 0, for a caller that will not come back for the prefix.
            start: position of the window's first token.
            condition: what the batch is sampled under.

        Returns:
            (log_scale, shift), each (B, W, D), for positions start+1..start+W.
        """
        ...


@runtime_checkable
class CausalFlow(Protocol):
    """A stack of causal layers that every decoder can invert."""

    num_layers: int
    num_tokens: int
    token_dim: int
    num_classes: int
    """0 for an unconditional flow."""

    @property
    def layers(self) -> Sequence[CausalLayer]:
        """The layers in decoding order."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W), or None when the data are no images."""
        ...

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: ``(latents (B, L, D), logdet (B,))``, latents on the prior's own scale."""
        ...

    def sample_latents(self, n: int, generator: Any = None) -> Tensor:
        """(n, L, D) standard normal numbers, before the learned prior scale."""
        ...

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Standard normal latents times the learned prior scale, as a new tensor."""
        ...

    def to_images(self, tokens: Tensor) -> Tensor | None:
        """(B, L, D) tokens to (B, C, H, W) images, or None when the data are no images."""
        ...

    def condition(self, batch: int, labels: Tensor | None = None, guidance: Guidance | None = None) -> Condition:
        """Check labels and guidance against this flow and bind them for `batch` samples."""
        ...


def encode_tokens(layers: Sequence[CausalLayer], tokens: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
    """Data to noise through every layer: one network call each, ``z = (x - shift) * exp(-log_scale)``.

    Args:
        layers: in decoding order.
        tokens: (B, L, D) data in raster order.
        condition: of the batch.

    Returns:
        latents (B, L, D) and logdet (B,), the sum over layers of ``-mean(log_scale)`` over tokens and channels; token
        0, which is passed through, counts as 0.
    """
    logdet = tokens.new_zeros(len(tokens))
    for layer in reversed(layers):
        x = layer.arrange(tokens)
        log_scale, shift = layer.affine(x[:, :-1], None, 0, condition)
        z = (x[:, 1:] - shift) * torch.exp(-log_scale)
        tokens = layer.restore(torch.cat([x[:, :1], z], dim=1))
        logdet = logdet - log_scale.sum(dim=(1, 2)) / (layer.num_tokens * layer.token_dim)
    return tokens, logdet


flows: Registry[Any] = Registry("flow", package="harness.flows", group="harness.flows")
"""Families of flows by name: a class with ``from_state(state, metadata) -> CausalFlow`` and ``recognises(state)``."""
