"""TarFlow: a stack of causal transformers over image patches (arXiv 2412.06329).

Block k maps data to noise by ``z[l] = (x[l] - shift(x[<l])) * exp(-log_scale(x[<l]))``; even blocks read the patches in
raster order, odd blocks in reverse. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import CheckpointError, HarnessError
from harness.flows.base import Condition, Guidance, encode_tokens, flows

HEAD_DIM = 64


@dataclass(frozen=True)
class TarFlowConfig:
    """The shape of a TarFlow; published names read ``patch-channels-blocks-layers``."""

    image_channels: int
    image_size: int
    patch: int
    channels: int
    blocks: int
    layers_per_block: int
    num_classes: int = 0
    volume_preserving: bool = False
    head_dim: int = HEAD_DIM

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise HarnessError(f"image size {self.image_size} is not a multiple of the patch size {self.patch}")
        if self.channels % self.head_dim:
            raise HarnessError(f"{self.channels} channels are not a multiple of the head dimension {self.head_dim}")

    @property
    def num_tokens(self) -> int:
        """L, the patches of one image."""
        return (self.image_size // self.patch) ** 2

    @property
    def token_dim(self) -> int:
        """D, the numbers of one patch."""
        return self.image_channels * self.patch**2


@dataclass(frozen=True)
class Context:
    """What a layer's network is told besides the tokens; the same at every call of a solve.

    Args:
        offset: (rows or 1, L, C) position and class embeddings, in the layer's order, added after `proj_in`.
        logit_scale: (rows, 1, 1, 1) factor on the attention logits, or None for 1.
        masked_lags: of `Condition`.
    """

    offset: Tensor
    logit_scale: Tensor | None
    masked_lags: range | None = None


class KeyValueCache:
    """Keys and values of every transformer layer for all L positions, allocated once.

    `data` is (layers, 2, rows, heads, L, head_dim), where rows is the batch, twice that under guidance. `context` is
    that of `condition`, computed once.
    """

    def __init__(self, data: Tensor, condition: Condition, context: Context) -> None:
        self.data, self.condition, self.context = data, condition, context
        self.layers = data.unbind(0)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.data.nbytes


@lru_cache(maxsize=64)
def _window_mask(window: int, start: int, device: torch.device) -> Tensor:
    """(W, start + W) True where a window position may look: at the prefix and at the window up to itself."""
    return torch.ones(window, start + window, dtype=torch.bool, device=device).tril(start)


@lru_cache(maxsize=64)
def _lag_mask(window: int, start: int, masked: range, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_window_mask` without the lags `masked`, and (W, 1) True where it leaves a position anything to look at.

    A position that is left nothing may look everywhere in the mask, so that its softmax is defined; what it sees is
    to be dropped.
    """
    lags = torch.arange(start, start + window, device=device)[:, None] - torch.arange(start + window, device=device)
    mask = (lags >= 0) & ~((lags >= masked.start) & (lags < masked.stop))
    some = mask.any(dim=1, keepdim=True)
    return mask | ~some, some


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that runs in float32 or wider, whatever the network's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        if x.dtype in (torch.float16, torch.bfloat16):
            return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float()).to(x.dtype)
        return super().forward(x)


class Attention(nn.Module):
    """Pre-norm causal self-attention of a window on itself and on a cached prefix."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.head_dim = head_dim

    def forward(self, x: Tensor, cache: Tensor | None, start: int, context: Context) -> Tensor:
        """(rows, W, C) -> (rows, W, C).

        Args:
            x: hidden states of the window.
            cache: (2, rows, heads, L, head_dim) keys and values, whose positions [0, start) are filled.
            start: position of the window's first token.
            context: its logit scale and masked lags are used.
        """
        rows, window, channels = x.shape
        qkv = self.qkv(self.norm(x)).view(rows, window, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        if cache is None:
            q, k, v = qkv.unbind(0)
        else:
            cache[..., start : start + window, :] = qkv[1:]
            q, (k, v) = qkv[0], cache[..., : start + window, :].unbind(0)
        if context.logit_scale is not None:
            q = q * context.logit_scale
        if context.masked_lags is None:
            mask = _window_mask(window, start, x.device) if start and window > 1 else None
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=start == 0 and window > 1)
        else:
            mask, some = _lag_mask(window, start, context.masked_lags, x.device)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).where(some, 0.0)
        return self.proj(x.transpose(1, 2).reshape(rows, window, channels))


class MLP(nn.Module):
    """Pre-norm feed-forward network, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.main = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.main(self.norm(x))


class TransformerLayer(nn.Module):
    """Attention, then MLP, each with a residual connection."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.attention = Attention(channels, head_dim)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor, cache: Tensor | None, start: int, context: Context) -> Tensor:
        """As `Attention.forward`."""
        x = x + self.attention(x, cache, start, context)
        return x + self.mlp(x)


class TarFlowLayer(nn.Module):
    """One block of a TarFlow, as a `CausalLayer`."""

    capturable = True  # see `harness.flows.graphs`

    def __init__(self, config: TarFlowConfig, block: int) -> None:
        super().__init__()
        self.block, self.number = block, config.blocks - block
        self.num_tokens, self.token_dim = config.num_tokens, config.token_dim
        self.reverse = block % 2 == 1
        self.head_dim = config.head_dim
        self.volume_preserving = config.volume_preserving
        self.proj_in = nn.Linear(self.token_dim, config.channels)
        self.pos_embed = _embedding(self.num_tokens, config.channels)
        self.class_embed: nn.Parameter | None = None
        if config.num_classes:
            self.class_embed = _embedding(config.num_classes, 1, config.channels)
        self.attn_blocks = nn.ModuleList(
            TransformerLayer(config.channels, config.head_dim) for _ in range(config.layers_per_block)
        )
        self.proj_out = nn.Linear(config.channels, self.token_dim * (1 if config.volume_preserving else 2))
        nn.init.zeros_(self.proj_out.weight)

    @property
    def output_weights(self) -> tuple[Tensor, Tensor]:
        """(D, C) each: the last linear map, to log_scale and to shift; the first is 0 where volume is preserved."""
        weight = self.proj_out.weight
        if self.volume_preserving:
            return torch.zeros_like(weight), weight
        return weight[: self.token_dim], weight[self.token_dim :]

    def arrange(self, tokens: Tensor) -> Tensor:
        """(B, L, D) tokens in this block's order: raster for even blocks, reversed for odd ones."""
        return tokens.flip(1) if self.reverse else tokens

    restore = arrange  # a reversal undoes itself

    def new_cache(self, batch: int, condition: Condition) -> KeyValueCache:
        """An empty cache for all L positions of `batch` samples, in the network's dtype and on its device."""
        weight = self.proj_in.weight
        heads = weight.shape[0] // self.head_dim
        shape = (len(self.attn_blocks), 2, batch * condition.passes, heads, self.num_tokens, self.head_dim)
        return KeyValueCache(weight.new_empty(shape), condition, self._context(batch, condition))

    def affine(
        self, tokens: Tensor, cache: KeyValueCache | None, start: int, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """(log_scale, shift), each (B, W, D), for positions start+1..start+W; see `CausalLayer.affine`."""
        guidance = condition.guidance
        if cache is None and start:
            raise ValueError(f"a window that starts at {start} needs the cache of its prefix")
        if cache is not None and cache.condition is condition:
            context = cache.context
        else:
            context = self._context(len(tokens), condition)
        if guidance is None:
            return self._network(tokens, cache, start, context)
        # Both passes of guidance are one call on twice the rows: first the conditional ones, then the others.
        log_scale, shift = self._network(torch.cat([tokens, tokens]), cache, start, context)
        weight: float | Tensor = guidance.scale
        if guidance.annealed:
            steps = torch.arange(start + 1, start + tokens.shape[1] + 1, device=tokens.device, dtype=tokens.dtype)
            weight = guidance.scale * steps[:, None] / (self.num_tokens - 1)
        return (
            _guide(log_scale, weight if "a" in guidance.components else None),
            _guide(shift, weight if "b" in guidance.components else None),
        )

    def _network(
        self, tokens: Tensor, cache: KeyValueCache | None, start: int, context: Context
    ) -> tuple[Tensor, Tensor]:
        x = self.proj_in(tokens.to(self.proj_in.weight.dtype)) + context.offset[:, start : start + tokens.shape[1]]
        for i, layer in enumerate(self.attn_blocks):
            x = layer(x, None if cache is None else cache.layers[i], start, context)
        out = self.proj_out(x).to(tokens.dtype)
        if self.volume_preserving:
            return torch.zeros_like(out), out
        return out[..., : self.token_dim], out[..., self.token_dim :]

    def _context(self, batch: int, condition: Condition) -> Context:
        offset, guidance = self.arrange(self.pos_embed[None]), condition.guidance
        classes, logit_scale = self._class_context(condition.labels), None
        if classes is not None:
            if guidance is not None:
                unconditional = self._class_context(None).expand(batch, -1, -1)  # type: ignore[union-attr]
                classes = torch.cat([classes.expand(batch, -1, -1), unconditional])
            offset = offset + classes
        if guidance is not None and guidance.temperature != 1.0:
            logit_scale = offset.new_ones(2 * batch, 1, 1, 1)
            logit_scale[batch:] /= guidance.temperature
        return Context(offset, logit_scale, condition.masked_lags)

    def _class_context(self, labels: Tensor | None) -> Tensor | None:
        """(B or 1, 1, C) class embedding; its mean over classes where a sample has no label."""
        if self.class_embed is None:
            return None
        mean = self.class_embed.mean(dim=0, keepdim=True)
        if labels is None:
            return mean
        return torch.where((labels < 0)[:, None, None], mean, self.class_embed[labels.clamp(min=0)])


def _embedding(*shape: int) -> nn.Parameter:
    """Small normal numbers; none on the meta device, where drawing them would import torch's compiler."""
    empty = torch.empty(shape)
    return nn.Parameter(empty if empty.is_meta else nn.init.normal_(empty, std=1e-2))


def _guide(both: Tensor, weight: float | Tensor | None) -> Tensor:
    """(2B, W, D) conditional and unconditional outputs -> (B, W, D) guided ones."""
    conditional, unconditional = both.chunk(2)
    return conditional if weight is None else conditional + weight * (conditional - unconditional)


@flows.register("tarflow")
class TarFlow(nn.Module):
    """Transformer autoregressive flow on image patches (arXiv 2412.06329).

    Example:
        >>> config = TarFlowConfig(image_channels=1, image_size=8, patch=2, channels=64, blocks=2, layers_per_block=1)
        >>> flow = TarFlow(config)
        >>> latents, logdet = flow.encode(torch.zeros(3, 1, 8, 8))
        >>> latents.shape, logdet.shape
        (torch.Size([3, 16, 4]), torch.Size([3]))
    """

    var: Tensor

    def __init__(self, config: TarFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.num_tokens = config.blocks, config.num_tokens
        self.token_dim, self.num_classes = config.token_dim, config.num_classes
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.register_buffer("var", torch.ones(self.num_tokens, self.token_dim))
        self.blocks = nn.ModuleList(TarFlowLayer(config, block) for block in range(config.blocks))

    @property
    def layers(self) -> list[TarFlowLayer]:
        """The layers in decoding order: from the prior to the data."""
        return list(reversed(self.blocks))  # type: ignore[arg-type]

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: (B,) classes, negative for none, or None.

        Returns:
            latents (B, L, D) on the scale of the learned prior, so that ``scale_latents`` maps standard normal
            numbers there; and logdet (B,), the sum over blocks of ``-mean(log_scale)`` over tokens and channels.

        Raises:
            HarnessError: labels that this flow does not have.
        """
        condition = self.condition(len(images), labels)
        return encode_tokens(self.layers, self.to_tokens(images), condition)

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, L, D) standard normal numbers in the dtype and on the device of `var`.

        They are drawn on the generator's own device, so that one seed means one sample whatever the flow runs on.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        shape = (n, self.num_tokens, self.token_dim)
        return torch.randn(shape, generator=generator, device=device).to(self.var)

    def scale_latents(self, latents: Tensor) -> Tensor:
        """(B, L, D) standard normal latents times the learned standard deviation of the prior."""
        return latents * self.var.sqrt()

    def to_tokens(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images to (B, L, D) patches in raster order, each channel-major, then row, then column."""
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise HarnessError(f"expected images of shape (B, {_shape(self.image_shape)}), got {tuple(images.shape)}")
        patch, channels = self.config.patch, self.config.image_channels
        grid = self.config.image_size // patch
        x = images.reshape(-1, channels, grid, patch, grid, patch)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, self.num_tokens, self.token_dim)

    def to_images(self, tokens: Tensor) -> Tensor:
        """(B, L, D) patches to (B, C, H, W) images; the inverse of `to_tokens`."""
        patch, channels = self.config.patch, self.config.image_channels
        grid = self.config.image_size // patch
        x = tokens.reshape(-1, grid, grid, channels, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, *self.image_shape)

    def condition(self, batch: int, labels: Tensor | None = None, guidance: Guidance | None = None) -> Condition:
        """Bind labels and guidance for `batch` samples.

        Raises:
            HarnessError: labels out of range, of the wrong number, or for an unconditional flow; guidance that can
                have no effect.
        """
        if guidance is not None and guidance.scale == 0:
            guidance = None
        if guidance is not None and not self.num_classes and guidance.temperature == 1.0:
            raise HarnessError("this flow has no classes, so guidance needs an attention temperature other than 1")
        if labels is not None:
            if not self.num_classes:
                raise HarnessError("labels were given, but this flow has no classes")
            labels = torch.as_tensor(labels, device=self.var.device)
            if labels.shape != (batch,) or labels.is_floating_point():
                raise HarnessError(
                    f"expected {batch} integer labels, got {labels.dtype} of shape {tuple(labels.shape)}"
                )
            if int(labels.max()) >= self.num_classes:
                raise HarnessError(
                    f"label {int(labels.max())} is out of range: this flow has classes 0 to {self.num_classes - 1}"
                )
        return Condition(labels, guidance)

    def mask_attention(self, condition: Condition, lags: range) -> Condition:
        """A condition under which no query sees the keys at these distances before it, 0 being its own.

        In every transformer layer of every block alike. What attention yields where no key is left is 0; the query's
        own token still enters through the residual connections.
        """
        return replace(condition, masked_lags=lags if len(lags) else None)

    def denoise(self, images: Tensor, sigma: float, labels: Tensor | None = None, multiplier: float = 1.0) -> Tensor:
        """One gradient step on the likelihood after sampling, for flows trained on noisy data.

        ``x - lr * grad_x loss(x)`` with ``lr = multiplier * B*C*H*W * sigma**2`` (arXiv 2412.06329, Sec. 3.3).

        Args:
            images: (B, C, H, W) samples.
            sigma: standard deviation of the Gaussian noise that the flow was trained with.
            labels: as in `encode`.
            multiplier: 1 is the score-based (Tweedie) step.
        """
        with torch.enable_grad():
            x = images.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(negative_log_likelihood(*self.encode(x, labels)), x)
        return images - multiplier * images.numel() * sigma**2 * gradient

    @classmethod
    def recognises(cls, state: dict[str, Tensor]) -> bool:
        """Whether a state dict looks like a TarFlow's."""
        return "var" in state and "blocks.0.proj_in.weight" in state

    @classmethod
    def from_state(cls, state: dict[str, Tensor], metadata: dict[str, str]) -> TarFlow:
        """A flow that uses the tensors of a published state dict as they are, its shape inferred from theirs.

        Raises:
            CheckpointError: a tensor is missing, superfluous, or of a shape that fits no TarFlow.
        """
        config = infer_config(state, metadata)
        with torch.device("meta"):
            flow = cls(config)
        wanted = flow.state_dict()
        state = {name: tensor for name, tensor in state.items() if not name.endswith(".attn_mask")}
        if missing := sorted(set(wanted) - set(state)):
            raise CheckpointError(f"{len(missing)} tensors are missing, the first is '{missing[0]}'")
        if extra := sorted(set(state) - set(wanted)):
            raise CheckpointError(f"{len(extra)} tensors belong to no TarFlow, the first is '{extra[0]}'")
        for name, tensor in wanted.items():
            if state[name].shape != tensor.shape:
                raise CheckpointError(
                    f"'{name}' has shape {_shape(state[name].shape)}, expected {_shape(tensor.shape)}"
                )
            if not state[name].is_floating_point():
                raise CheckpointError(f"'{name}' holds {state[name].dtype}, expected floating-point numbers")
        flow.load_state_dict(state, assign=True)
        return flow.requires_grad_(False).eval()


def negative_log_likelihood(latents: Tensor, logdet: Tensor) -> Tensor:
    """``0.5 * mean(z**2) - mean(logdet)``: nats per dimension, less the constant ``0.5 * log(2 pi)``."""
    return 0.5 * latents.square().mean() - logdet.mean()


def infer_config(state: dict[str, Tensor], metadata: dict[str, str]) -> TarFlowConfig:
    """The architecture of a published state dict, from the shapes of its tensors.

    D is 3 * patch**2 or patch**2, which are never equal, and images are square, so nothing else is needed.

    Raises:
        CheckpointError: shapes that fit no TarFlow.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state:
            raise CheckpointError(f"tensor '{name}' is missing")
        if state[name].ndim != ndim or 0 in state[name].shape:
            raise CheckpointError(
                f"'{name}' has shape {_shape(state[name].shape)}, expected {ndim} dimensions, none empty"
            )
        return tuple(state[name].shape)

    def count(prefix: str) -> int:
        parts = {name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)}
        if parts != {str(i) for i in range(len(parts))}:
            raise CheckpointError(f"'{prefix}*' is not numbered 0, 1, 2, ...")
        return len(parts)

    num_tokens, token_dim = shape("var", 2)
    channels, _ = shape("blocks.0.proj_in.weight", 2)
    image_channels, patch = _factor_token(token_dim)
    grid = isqrt(num_tokens)
    if grid**2 != num_tokens:
        raise CheckpointError(f"{num_tokens} tokens do not make a square image")
    outputs, _ = shape("blocks.0.proj_out.weight", 2)
    if outputs not in (token_dim, 2 * token_dim):
        raise CheckpointError(f"'blocks.0.proj_out.weight' has {outputs} rows, expected {token_dim} or {2 * token_dim}")
    head_dim = metadata.get("head_dim", str(HEAD_DIM))
    if not head_dim.isdecimal() or int(head_dim) == 0 or channels % int(head_dim):
        raise CheckpointError(f"{channels} channels are not a multiple of the head dimension {head_dim}")
    return TarFlowConfig(
        image_channels=image_channels,
        image_size=grid * patch,
        patch=patch,
        channels=channels,
        blocks=count("blocks."),
        layers_per_block=count("blocks.0.attn_blocks."),
        num_classes=shape("blocks.0.class_embed", 3)[0] if "blocks.0.class_embed" in state else 0,
        volume_preserving=outputs == token_dim,
        head_dim=int(head_dim),
    )


def _factor_token(token_dim: int) -> tuple[int, int]:
    """(image channels, patch) with channels * patch**2 == token_dim."""
    for image_channels in (1, 3):
        patch = isqrt(token_dim // image_channels)
        if image_channels * patch**2 == token_dim:
            return image_channels, patch
    raise CheckpointError(f"{token_dim} numbers a token are neither patch**2 nor 3 * patch**2")


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape))
