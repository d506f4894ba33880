"""Autoregressive flows built with zuko, as an optional extra (masked autoregressive flow, arXiv 1705.07057).

A feature is a token of one number, in each layer's own order. zuko writes ``z = x * exp(a(x)) + b(x)`` from data to
noise, so ``log_scale = -a`` and ``shift = -b * exp(-a)``.

zuko transforms the first feature of a layer too, by constants, where `CausalLayer` passes token 0 through. Those
constants are folded into the coordinates that the layer receives: into the outputs of the layer before it, and for the
first layer into the scale of the prior. Samples are zuko's own.

The cache holds activations, see `harness.flows.masked`: a step of the sequential decoder computes only the hidden
units that the new feature completes, so that a whole sequential decode costs the arithmetic of one forward pass. That
is the best exact decoder known here, and not the paper's baseline: arXiv 2505.24791, Sec. E.3, takes these networks to
have no cache and pays for a full forward pass in every step, as zuko's own inverse does. The decoder ``uncached`` is
that baseline.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from harness.errors import CheckpointError, HarnessError
from harness.flows.calls import encode_tokens
from harness.flows.ising import Ising
from harness.flows.masked import ACTIVATIONS, ActivationCache, MaskedNetwork
from harness.flows.modules import FlowModule, LayerModule
from harness.flows.protocols import Condition, Guidance, flows
from harness.options import reason

METADATA_KEY = "zuko"
_TRANSFORM = re.compile(r"transform\.transforms\.(\d+)\.hyper\.(\d+)\.weight")


class ZukoLayer(LayerModule):
    """One masked autoregressive transform of zuko, as a `CausalLayer`.

    Args:
        transform: zuko's `MaskedAutoregressiveTransform`, affine and without context.
        outer: (2, L) log_scale and shift from zuko's to this harness's coordinates of the layer's outputs.
    """

    outer: Tensor
    order: Tensor
    rank: Tensor

    def __init__(self, transform: Any, block: int, num_layers: int, outer: Tensor) -> None:
        super().__init__()
        self.block, self.number = block, num_layers - block
        self.num_tokens, self.token_dim = len(transform.order), 1
        self.univariate = transform.univariate
        self.register_buffer("order", torch.argsort(transform.order, stable=True))
        self.register_buffer("rank", torch.argsort(self.order))
        self.register_buffer("outer", outer[:, self.order])
        self.network = MaskedNetwork(transform.hyper, self.order)
        # The network sees this layer's outputs in zuko's coordinates: (x - shift) / scale of each position, folded in.
        scale, shift = self.outer[0].exp(), self.outer[1]
        self.network.weights[0].div_(scale)
        self.network.biases[0].sub_(self.network.weights[0] @ shift)

    def arrange(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.order]

    def restore(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.rank]

    def new_cache(self, batch: int, condition: Condition) -> ActivationCache:
        return self.network.new_cache(batch)

    def affine(
        self, tokens: Tensor, cache: ActivationCache | None, start: int, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        if cache is None and start:
            raise ValueError(f"a window that starts at {start} needs the cache of its prefix")
        outputs = self.network(tokens[..., 0].to(self.outer.dtype), start, cache)
        log_scale, shift = self.read(outputs, slice(start + 1, start + 1 + outputs.shape[1]))
        return log_scale[..., None].to(tokens.dtype), shift[..., None].to(tokens.dtype)

    def read(self, outputs: Tensor, positions: slice) -> tuple[Tensor, Tensor]:
        """(..., V, 2) outputs of the network at some positions -> (log_scale, shift), (..., V) each."""
        scale = self.univariate(*outputs.unbind(-1))
        return fold(-scale.log_scale, -scale.shift * torch.exp(-scale.log_scale), self.outer[:, positions])

    def first(self) -> tuple[Tensor, Tensor]:
        """log_scale and shift of position 0, constants."""
        log_scale, shift = self.read(self.network.constants()[None], slice(0, 1))
        return log_scale[0], shift[0]


def fold(log_scale: Tensor, shift: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map ``(log_scale, shift)`` followed by the affine map `outer`."""
    return log_scale + outer[0], shift * torch.exp(outer[0]) + outer[1]


@flows.register("zuko")
class ZukoFlow(FlowModule):
    """Masked autoregressive flow built with zuko; features are tokens (arXiv 1705.07057).

    Args:
        flow: a zuko flow whose transforms are all affine `MaskedAutoregressiveTransform` without context, as `MAF`'s.
        image_shape: (C, H, W) where features are the pixels of images, in [-1, 1] and row by row.
        target: the model whose Boltzmann distribution the flow was trained on, if it was.

    Raises:
        HarnessError: a transform that is not of that kind, or a number of features that does not fit.

    Example:
        >>> import zuko
        >>> flow = ZukoFlow(zuko.flows.MAF(features=5, transforms=3))
        >>> flow.num_tokens, flow.token_dim, flow.num_layers, flow.image_shape
        (5, 1, 3, None)
    """

    num_classes = 0
    prior: Tensor

    def __init__(
        self, flow: nn.Module, image_shape: tuple[int, int, int] | None = None, target: Ising | None = None
    ) -> None:
        super().__init__()
        self.image_shape, self.target = image_shape, target
        transforms = list(flow.transform.transforms)  # type: ignore[union-attr, arg-type]
        for transform in transforms:
            if getattr(transform, "order", None) is None or transform.total != 2:
                raise HarnessError(f"only affine autoregressive transforms with an order are decoded, not {transform}")
            if transform.hyper.in_features != len(transform.order):
                raise HarnessError("a zuko flow with context is not supported: its layers take features only")
        self.num_layers, self.num_tokens, self.token_dim = len(transforms), len(transforms[0].order), 1
        expected = math.prod(image_shape) if image_shape else target.sites if target else self.num_tokens
        if self.num_tokens != expected:
            raise HarnessError(f"a flow of {self.num_tokens} features was said to be one of {expected}")
        base = flow.base(None)  # type: ignore[operator]
        if not isinstance(getattr(base, "base_dist", None), torch.distributions.Normal):
            raise HarnessError(f"latents are drawn from a diagonal normal distribution, not from {base}")
        outer = torch.zeros(2, self.num_tokens, dtype=base.mean.dtype)
        self.blocks = nn.ModuleList()
        for block, transform in enumerate(transforms):
            layer = ZukoLayer(transform, block, self.num_layers, outer)
            self.blocks.append(layer)
            outer = torch.zeros_like(outer)
            outer[0, layer.order[0]], outer[1, layer.order[0]] = layer.first()
        self.register_buffer("prior", torch.stack(fold(base.stddev.log(), base.mean, outer)))
        self.requires_grad_(False).eval()

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise.

        Args:
            images: (B, C, H, W) where the data are images, otherwise (B, L) or (B, L, 1) features.

        Returns:
            latents (B, L, 1) on the prior's own scale, that of `scale_latents`; and logdet (B,), the sum over layers
            of ``-mean(log_scale)``.
        """
        tokens = images.reshape(len(images), -1, 1)
        if tokens.shape[1] != self.num_tokens:
            raise HarnessError(f"expected {self.num_tokens} features, got {tokens.shape[1]}")
        return encode_tokens(self.layers, tokens, self.condition(len(tokens), labels))

    def scale_latents(self, latents: Tensor) -> Tensor:
        """(B, L, 1) standard normal latents on the prior's scale, the first layer's folded constants included."""
        log_scale, shift = self.prior[..., None]
        return latents * log_scale.exp() + shift

    def to_images(self, tokens: Tensor) -> Tensor | None:
        return None if self.image_shape is None else tokens.reshape(len(tokens), *self.image_shape)

    def condition(self, batch: int, labels: Tensor | None = None, guidance: Guidance | None = None) -> Condition:
        if labels is not None:
            self.checked(labels, batch)
        if guidance is not None and guidance.scale != 0:
            raise HarnessError("this flow has no classes, so guidance can have no effect")
        return Condition()

    @classmethod
    def recognises(cls, state: dict[str, Tensor]) -> bool:
        return "transform.transforms.0.hyper.0.weight" in state

    @classmethod
    def from_state(cls, state: dict[str, Tensor], metadata: dict[str, str]) -> ZukoFlow:
        """A flow from the state dict of a zuko `MAF`, its shape inferred from the tensors.

        Args:
            metadata: as from `checkpoint_metadata`; ReLU is assumed where there is none.
        """
        try:
            from zuko.flows import MAF
        except ImportError as error:
            raise CheckpointError("reading it needs zuko: pip install 'nf-decoding-harness[zuko]'") from error
        found = [match for match in map(_TRANSFORM.fullmatch, state) if match]
        linears = sorted({int(match[2]) for match in found if match[1] == "0"})
        shapes = [tuple(state[f"transform.transforms.0.hyper.{i}.weight"].shape) for i in linears]
        if any(len(shape) != 2 for shape in shapes) or shapes[-1][0] != 2 * shapes[0][1]:
            raise CheckpointError("its networks do not end in two numbers a feature, so they are no affine transforms")
        facts = _facts(metadata)
        flow = MAF(
            features=shapes[0][1],
            transforms=len({match[1] for match in found}),
            hidden_features=[rows for rows, _ in shapes[:-1]],
            activation=getattr(nn, facts.activation),
        )
        try:
            flow.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"its tensors fit no MAF of zuko: {' '.join(str(error).split())}") from error
        try:
            target = None if facts.ising is None else Ising(facts.ising.side, facts.ising.temperature)
            return cls(flow, facts.image_shape, target)
        except HarnessError as error:
            raise CheckpointError(f"its metadata '{METADATA_KEY}' does not fit its tensors: {error}") from error


class _Lattice(BaseModel):
    side: int
    temperature: float


class _Facts(BaseModel):
    """What the metadata must hold to, whatever else is in there for a reader."""

    activation: str = "ReLU"
    image_shape: tuple[int, int, int] | None = None
    ising: _Lattice | None = None


def _facts(metadata: dict[str, str]) -> _Facts:
    try:
        facts = _Facts.model_validate_json(metadata.get(METADATA_KEY, "{}"))
    except ValidationError as error:
        raise CheckpointError(
            f"its metadata '{METADATA_KEY}' is no JSON object as expected: {reason(error)}"
        ) from error
    if facts.activation not in ACTIVATIONS:
        raise CheckpointError(f"its activation is '{facts.activation}', expected one of {', '.join(ACTIVATIONS)}")
    return facts


def checkpoint_metadata(activation: str = "ReLU", **facts: Any) -> dict[str, str]:
    """Metadata for a safetensors file of a zuko flow: what its tensors do not tell, and facts for a reader.

    It is one entry, since safetensors keeps no order of several, and the same flow should be the same file.
    """
    return {METADATA_KEY: json.dumps({"activation": activation} | facts, sort_keys=True)}
