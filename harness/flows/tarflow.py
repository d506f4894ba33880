"""TarFlow: a stack of causal transformers over image patches (arXiv 2412.06329).

Block k maps data to noise by ``z[l] = (x[l] - shift(x[<l])) * exp(-log_scale(x[<l]))``; even blocks read the patches in
raster order, odd blocks in reverse, unless the shape says otherwise. Parameter names are those of the published
checkpoints.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.flows.calls import encode_tokens
from harness.flows.modules import FlowModule, LayerModule, assign, embedding
from harness.flows.protocols import Condition, Explained, Guidance, Place, flows
from harness.flows.tarflow_shape import TarFlowConfig, infer_config
from harness.flows.transformer import Context, KeyValueCache, Placed, TransformerLayer, placed


class TarFlowLayer(LayerModule):
    """One block of a TarFlow, as a `CausalLayer`."""

    capturable = True

    def __init__(self, config: TarFlowConfig, block: int) -> None:
        super().__init__()
        self.block, self.number = block, config.blocks - block
        self.num_tokens, self.token_dim = config.num_tokens, config.token_dim
        self.reverse = block // config.turn_every % 2 == 1
        self.head_dim, self.hidden_dim = config.head_dim, config.channels
        self.volume_preserving = config.volume_preserving
        self.proj_in = nn.Linear(self.token_dim, config.channels)
        self.pos_embed = embedding(self.num_tokens, config.channels)
        self.class_embed: nn.Parameter | None = None
        if config.num_classes:
            self.class_embed = embedding(config.num_classes, 1, config.channels)
        self.attn_blocks = nn.ModuleList(
            TransformerLayer(config.channels, config.head_dim) for _ in range(config.depths[block])
        )
        self.proj_out = nn.Linear(config.channels, self.token_dim * (1 if config.volume_preserving else 2))
        nn.init.zeros_(self.proj_out.weight)

    @property
    def output_weights(self) -> tuple[Tensor, Tensor]:
        weight = self.proj_out.weight
        if self.volume_preserving:
            return torch.zeros_like(weight), weight
        return weight[: self.token_dim], weight[self.token_dim :]

    def arrange(self, tokens: Tensor) -> Tensor:
        """(B, L, D) tokens in this block's order: raster for even blocks, reversed for odd ones."""
        return tokens.flip(1) if self.reverse else tokens

    restore = arrange  # a reversal undoes itself

    def new_cache(self, batch: int, condition: Condition) -> KeyValueCache:
        weight = self.proj_in.weight
        heads = weight.shape[0] // self.head_dim
        shape = (len(self.attn_blocks), 2, batch * condition.passes, heads, self.num_tokens, self.head_dim)
        return KeyValueCache(weight.new_empty(shape), condition, self._context(batch, condition), self.block)

    def reuse_cache(self, cache: KeyValueCache, condition: Condition) -> KeyValueCache:
        cache.data.zero_()  # a captured call weighs what is behind its window by 0, which a NaN would survive
        context = self._context(cache.data.shape[2] // condition.passes, condition)
        if cache.block != self.block:
            return KeyValueCache(cache.data, condition, context, self.block)
        cache.context.offset.copy_(context.offset)
        return cache

    def affine(
        self, tokens: Tensor, cache: KeyValueCache | None, start: int | Place, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        guidance = condition.guidance
        if guidance is None:
            return self._read_off(self._hidden(tokens, cache, start, condition), tokens.dtype)
        # Both passes of guidance are one call on twice the rows: first the conditional ones, then the others.
        hidden = self._hidden(torch.cat([tokens, tokens]), cache, start, condition)
        log_scale, shift = self._read_off(hidden, tokens.dtype)
        weight: float | Tensor = guidance.scale
        if guidance.annealed:
            first = start.start if isinstance(start, Place) else start
            steps = first + torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=tokens.dtype)
            weight = guidance.scale * steps[:, None] / (self.num_tokens - 1)
        return (
            _guide(log_scale, weight if "a" in guidance.components else None),
            _guide(shift, weight if "b" in guidance.components else None),
        )

    def explain(
        self, inputs: Tensor, tokens: Tensor, cache: KeyValueCache | None, start: int, condition: Condition
    ) -> Explained:
        if condition.guidance is not None:
            raise ValueError("under guidance a token has two hidden states")
        hidden = self._hidden(tokens, cache, start, condition)
        log_scale, shift = self._read_off(hidden, tokens.dtype)
        target = inputs[:, start + 1 : start + 1 + tokens.shape[1]]
        count = target.shape[1]
        scaled = target * log_scale[:, :count].exp()
        return Explained(scaled + shift[:, :count], scaled, hidden[:, :count])

    def _hidden(self, tokens: Tensor, cache: KeyValueCache | None, start: int | Place, condition: Condition) -> Tensor:
        """(rows, W, C) the network's state before its last linear map, twice the batch's rows under guidance."""
        if cache is None and start != 0:
            raise ValueError(f"a window that starts at {start} needs the cache of its prefix")
        if cache is not None and cache.condition is condition:
            context = cache.context
        else:
            context = self._context(len(tokens) // condition.passes, condition)
        where: int | Placed
        if isinstance(start, Place):
            where = placed(start, tokens.shape[1], self.num_tokens, context.offset)
            offset = context.offset.index_select(1, where.index)
        else:
            where, offset = start, context.offset[:, start : start + tokens.shape[1]]
        x = self.proj_in(tokens.to(self.proj_in.weight.dtype)) + offset
        for i, layer in enumerate(self.attn_blocks):
            x = layer(x, None if cache is None else cache.layers[i], where, context)
        return x

    def _read_off(self, hidden: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(log_scale, shift), each (rows, W, D), of hidden states."""
        out = self.proj_out(hidden).to(dtype)
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


def _guide(both: Tensor, weight: float | Tensor | None) -> Tensor:
    """(2B, W, D) conditional and unconditional outputs -> (B, W, D) guided ones."""
    conditional, unconditional = both.chunk(2)
    return conditional if weight is None else conditional + weight * (conditional - unconditional)


@flows.register("tarflow")
class TarFlow(FlowModule):
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

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: (B,) classes, negative for none, or None.

        Returns:
            latents (B, L, D) on the scale of the learned prior, so that ``scale_latents`` maps standard normal
            numbers there; and logdet (B,), the sum over blocks of ``-mean(log_scale)`` over tokens and channels.
        """
        condition = self.condition(len(images), labels)
        return encode_tokens(self.layers, self.to_tokens(images), condition)

    def scale_latents(self, latents: Tensor) -> Tensor:
        return latents * self.var.sqrt()

    def to_tokens(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images to (B, L, D) patches in raster order, each channel-major, then row, then column."""
        self.require_images(images)
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
            labels = self.checked(labels, batch)
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
            sigma: standard deviation of the Gaussian noise that the flow was trained with.
            multiplier: 1 is the score-based (Tweedie) step.
        """
        with torch.enable_grad():
            x = images.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(negative_log_likelihood(*self.encode(x, labels)), x)
        return images - multiplier * images.numel() * sigma**2 * gradient

    @classmethod
    def recognises(cls, state: dict[str, Tensor]) -> bool:
        return "var" in state and "blocks.0.proj_in.weight" in state

    @classmethod
    def from_state(cls, state: dict[str, Tensor], metadata: dict[str, str]) -> TarFlow:
        """A flow that uses the tensors of a published state dict as they are, its shape inferred from theirs."""
        config = infer_config(state, metadata)
        with torch.device("meta"):
            flow = cls(config)
        assign(flow, {name: tensor for name, tensor in state.items() if not name.endswith(".attn_mask")}, "TarFlow")
        return flow.requires_grad_(False).eval()


def negative_log_likelihood(latents: Tensor, logdet: Tensor) -> Tensor:
    """``0.5 * mean(z**2) - mean(logdet)``: nats per dimension, less the constant ``0.5 * log(2 pi)``."""
    return 0.5 * latents.square().mean() - logdet.mean()
