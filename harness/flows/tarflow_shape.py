"""The shape of a TarFlow, inferred from the tensors of a published checkpoint, which does not state it.

What no tensor shows, the width of heads and an order that turns more seldom, is in the metadata of a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from torch import Tensor

from harness.errors import CheckpointError, HarnessError
from harness.flows.modules import count_of, shape_of

HEAD_DIM = 64


@dataclass(frozen=True)
class TarFlowConfig:
    """The shape of a TarFlow; published names read ``patch-channels-blocks-layers``."""

    image_channels: int
    image_size: int
    patch: int
    channels: int
    blocks: int
    layers_per_block: int | tuple[int, ...]
    """One number, or one for each block from the data side."""
    num_classes: int = 0
    volume_preserving: bool = False
    head_dim: int = HEAD_DIM
    turn_every: int = 1
    """Blocks after which the order of the tokens turns: 1, as published, for raster, reverse, raster, ..."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise HarnessError(f"image size {self.image_size} is not a multiple of the patch size {self.patch}")
        if self.channels % self.head_dim:
            raise HarnessError(f"{self.channels} channels are not a multiple of the head dimension {self.head_dim}")
        if len(self.depths) != self.blocks:
            raise HarnessError(f"layers per block are given for {len(self.depths)} blocks of {self.blocks}")

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer layers of every block, from the data side."""
        depth = self.layers_per_block
        return (depth,) * self.blocks if isinstance(depth, int) else depth

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch) ** 2

    @property
    def token_dim(self) -> int:
        return self.image_channels * self.patch**2


def infer_config(state: dict[str, Tensor], metadata: dict[str, str]) -> TarFlowConfig:
    """The architecture of a published state dict, from the shapes of its tensors.

    D is 3 * patch**2 or patch**2, which are never equal, and images are square, so nothing else is needed.
    """
    num_tokens, token_dim = shape_of(state, "var", 2)
    channels, _ = shape_of(state, "blocks.0.proj_in.weight", 2)
    image_channels, patch = _factor_token(token_dim)
    grid = isqrt(num_tokens)
    if grid**2 != num_tokens:
        raise CheckpointError(f"{num_tokens} tokens do not make a square image")
    outputs, _ = shape_of(state, "blocks.0.proj_out.weight", 2)
    if outputs not in (token_dim, 2 * token_dim):
        raise CheckpointError(f"'blocks.0.proj_out.weight' has {outputs} rows, expected {token_dim} or {2 * token_dim}")
    head_dim = metadata.get("head_dim", str(HEAD_DIM))
    if not head_dim.isdecimal() or int(head_dim) == 0 or channels % int(head_dim):
        raise CheckpointError(f"{channels} channels are not a multiple of the head dimension {head_dim}")
    turn_every = metadata.get("turn_every", "1")
    if not turn_every.isdecimal() or int(turn_every) == 0:
        raise CheckpointError(f"it says that the order turns every {turn_every!r} blocks, expected 1 or more")
    blocks = count_of(state, "blocks.")
    depths = tuple(count_of(state, f"blocks.{block}.attn_blocks.") for block in range(blocks))
    return TarFlowConfig(
        image_channels=image_channels,
        image_size=grid * patch,
        patch=patch,
        channels=channels,
        blocks=blocks,
        layers_per_block=depths[0] if len(set(depths)) == 1 else depths,
        num_classes=shape_of(state, "blocks.0.class_embed", 3)[0] if "blocks.0.class_embed" in state else 0,
        volume_preserving=outputs == token_dim,
        head_dim=int(head_dim),
        turn_every=int(turn_every),
    )


def _factor_token(token_dim: int) -> tuple[int, int]:
    """(image channels, patch) with channels * patch**2 == token_dim."""
    for image_channels in (1, 3):
        patch = isqrt(token_dim // image_channels)
        if image_channels * patch**2 == token_dim:
            return image_channels, patch
    raise CheckpointError(f"{token_dim} numbers a token are neither patch**2 nor 3 * patch**2")
