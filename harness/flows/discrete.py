"""Autoregressive models of discrete tokens, whose random numbers are the latents (the Gumbel-max trick).

Token l takes the level ``x[l] = arg max over k of (logits[k](x[<l]) + T * g[l, k])``. With standard Gumbel noise g it
is distributed as the softmax of ``logits / T``, and once g is drawn it is a function of the tokens before it: a
triangular system, that of a flow's layer but for the update, so that every decoder solves it. Fixed-point iteration of
such models is predictive sampling (arXiv 2002.09928), of images, and Jacobi decoding (arXiv 2305.10427), of text; of
nonlinear systems in general arXiv 2002.03629.

A token is its level one-hot, D numbers for D levels; any other D numbers, such as a first guess, are read as the level
of the largest. Token 0 starts the sequence: it is passed through and not looked at. The model is a stack of one layer.
There is no log_scale and no shift, so what needs them, guidance among it, is refused.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import CheckpointError, HarnessError
from harness.flows.modules import FlowModule, LayerModule, assign, count_of, embedding, shape_of
from harness.flows.protocols import Condition, Guidance, flows
from harness.flows.transformer import Context, KeyValueCache, TransformerLayer

HEAD_DIM = 32
LARGEST_LATENT = 12.0
"""Beyond it the normal distribution's tail leaves the range of single precision."""


def gumbel(latents: Tensor) -> Tensor:
    """Standard normal numbers to standard Gumbel noise, ``-log(-log u)`` with u the normal distribution function."""
    return -torch.log(-torch.special.log_ndtr(latents.clamp(-LARGEST_LATENT, LARGEST_LATENT)))


def normal(noise: Tensor) -> Tensor:
    """The inverse of `gumbel`."""
    return -torch.special.ndtri(-torch.expm1(-torch.exp(-noise)))


def one_hot(scores: Tensor) -> Tensor:
    """(..., D) 1 at the largest score, 0 elsewhere."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1)


class DiscreteLayer(LayerModule):
    """A causal transformer over levels, as a `CausalLayer` whose update is an arg max.

    Args:
        unigram: (D, C, H, W) logits of every pixel's levels when it is seen alone, which the network adds to.
    """

    number, block = 1, 0
    unigram: Tensor
    temperature = 1.0
    """T: 0 is greedy, whatever the latents."""

    def __init__(self, unigram: Tensor, channels: int, layers: int, num_classes: int) -> None:
        super().__init__()
        self.token_dim, self.num_tokens = len(unigram), 1 + math.prod(unigram.shape[1:])
        self.register_buffer("unigram", unigram)
        self.embed = embedding(self.token_dim, channels)
        self.pos_embed = embedding(self.num_tokens, channels)
        self.class_embed = embedding(num_classes + 1, channels) if num_classes else None  # the last is for none
        self.attn_blocks = nn.ModuleList(TransformerLayer(channels, HEAD_DIM) for _ in range(layers))
        self.proj_out = nn.Linear(channels, self.token_dim)
        nn.init.zeros_(self.proj_out.weight)

    def arrange(self, tokens: Tensor) -> Tensor:
        return tokens

    restore = arrange

    def new_cache(self, batch: int, condition: Condition) -> KeyValueCache:
        layers, channels = len(self.attn_blocks), self.embed.shape[1]
        shape = (layers, 2, batch, channels // HEAD_DIM, self.num_tokens, HEAD_DIM)
        return KeyValueCache(self.embed.new_empty(shape), condition, self._context(condition), self.block)

    def affine(self, tokens: Tensor, cache: Any, start: int, condition: Condition) -> tuple[Tensor, Tensor]:
        raise HarnessError("discrete tokens are no affine function of their noise: they have no log_scale and no shift")

    def update(
        self, inputs: Tensor, tokens: Tensor, cache: KeyValueCache | None, start: int, condition: Condition
    ) -> Tensor:
        logits = self.logits(tokens, cache, start, condition)
        return one_hot(logits + self.temperature * gumbel(inputs[:, start + 1 : start + 1 + logits.shape[1]]))

    def logits(self, tokens: Tensor, cache: KeyValueCache | None, start: int, condition: Condition) -> Tensor:
        """(B, W, D) tokens from `start`, as for `update` -> (B, V, D) logits of the tokens start+1..start+V."""
        if cache is None and start:
            raise ValueError(f"a window that starts at {start} needs the cache of its prefix")
        context = cache.context if cache is not None and cache.condition is condition else self._context(condition)
        end = start + tokens.shape[1]
        known = torch.arange(start, end, device=tokens.device)[:, None] > 0
        x = F.embedding(tokens.argmax(dim=2), self.embed) * known + context.offset[:, start:end]
        for i, layer in enumerate(self.attn_blocks):
            x = layer(x, None if cache is None else cache.layers[i], start, context)
        alone = self.unigram.flatten(1).T[start:end]
        return (self.proj_out(x[:, : len(alone)]) + alone).to(tokens.dtype)

    def _context(self, condition: Condition) -> Context:
        offset = self.pos_embed[None]
        if self.class_embed is not None:
            none = torch.tensor([-1], device=offset.device)
            labels = none if condition.labels is None else condition.labels.clamp(min=-1)
            offset = offset + self.class_embed[labels][:, None]
        return Context(offset, None)


@flows.register("discrete")
class DiscreteFlow(FlowModule):
    """Autoregressive model of images whose pixels take few levels, sampled by arg max of logits plus Gumbel noise.

    Args:
        levels: (D,) the values in [-1, 1] that pixels take, the first of them the darkest.
        unigram: as of `DiscreteLayer`.

    Example:
        >>> flow = DiscreteFlow(torch.tensor([-1.0, 1.0]), torch.zeros(2, 1, 4, 4), channels=32, layers=1)
        >>> flow.num_tokens, flow.token_dim, flow.num_layers, flow.image_shape
        (17, 2, 1, (1, 4, 4))
    """

    num_layers = 1
    levels: Tensor

    def __init__(self, levels: Tensor, unigram: Tensor, channels: int, layers: int, num_classes: int = 0) -> None:
        super().__init__()
        if channels % HEAD_DIM:
            raise HarnessError(f"{channels} channels are not a multiple of the head dimension {HEAD_DIM}")
        self.register_buffer("levels", levels)
        self.blocks = nn.ModuleList([DiscreteLayer(unigram, channels, layers, num_classes)])
        self.num_tokens, self.token_dim, self.num_classes = self.layer.num_tokens, self.layer.token_dim, num_classes
        _, colours, height, width = unigram.shape
        self.image_shape = (colours, height, width)

    def tempered(self, temperature: float) -> DiscreteFlow:
        """A copy that is sampled at another temperature; `load_flow` gives 1, as it was trained."""
        if not 0 <= temperature < math.inf:
            raise HarnessError(f"a temperature is a finite number from 0, which is greedy, not {temperature}")
        flow = copy.deepcopy(self)
        flow.layer.temperature, flow.source = temperature, None
        return flow

    @property
    def layer(self) -> DiscreteLayer:
        return self.layers[0]

    def log_probabilities(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) images -> (B, L-1, D) log probabilities of every level, in nats, and (B, L-1) the levels."""
        self.require_images(images)
        found = (images.flatten(1)[..., None] - self.levels).abs().argmin(dim=2)
        tokens = F.one_hot(F.pad(found, (1, 0)), self.token_dim).to(images.dtype)
        logits = self.layer.logits(tokens[:, :-1], None, 0, self.condition(len(images), labels))
        return F.log_softmax(logits / self.layer.temperature, dim=2), found

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents that decode to some images, and how likely these are. Many do; these are the same every time.

        The largest score and, given it, every other one, is the median of its distribution (arXiv 1411.0030, Sec. 3).

        Args:
            images: (B, C, H, W) in [-1, 1]; a pixel counts as the nearest level.

        Returns:
            latents (B, L, D), 0 where they decide nothing; and (B,) the mean log probability of the pixels, in nats.
        """
        if not self.layer.temperature:
            raise HarnessError("at temperature 0 latents decide nothing, so there are none that give an image")
        log_p, found = self.log_probabilities(images, labels)
        own = F.one_hot(found, self.token_dim) > 0
        noise = -math.log(math.log(2)) - torch.where(own, log_p, torch.log1p(log_p.exp()))
        return F.pad(normal(noise), (0, 0, 1, 0)), log_p[own].view(len(images), -1).mean(dim=1)

    def scale_latents(self, latents: Tensor) -> Tensor:
        return latents.clone()

    def to_images(self, tokens: Tensor) -> Tensor:
        """(B, L, D) tokens to (B, C, H, W) images in [-1, 1]."""
        return self.levels[tokens[:, 1:].argmax(dim=2)].view(-1, *self.image_shape)

    def condition(self, batch: int, labels: Tensor | None = None, guidance: Guidance | None = None) -> Condition:
        if guidance is not None and guidance.scale != 0:
            raise HarnessError("guidance moves log_scale and shift, and discrete tokens have neither: leave it out")
        return Condition(None if labels is None else self.checked(labels, batch))

    @classmethod
    def recognises(cls, state: dict[str, Tensor]) -> bool:
        return "levels" in state and "blocks.0.unigram" in state

    @classmethod
    def from_state(cls, state: dict[str, Tensor], metadata: dict[str, str]) -> DiscreteFlow:
        """A flow that uses the tensors of a state dict as they are, its shape inferred from theirs."""
        unigram, (levels, channels) = shape_of(state, "blocks.0.unigram", 4), shape_of(state, "blocks.0.embed", 2)
        classes = shape_of(state, "blocks.0.class_embed", 2)[0] - 1 if "blocks.0.class_embed" in state else 0
        layers = count_of(state, "blocks.0.attn_blocks.")
        try:
            with torch.device("meta"):
                flow = cls(torch.empty(levels), torch.empty(unigram), channels, layers, classes)
        except HarnessError as error:
            raise CheckpointError(str(error)) from error
        assign(flow, state, "model of discrete tokens")
        return flow.requires_grad_(False).eval()
