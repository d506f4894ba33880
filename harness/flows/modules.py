"""What flows and layers that are torch modules share, so that a family states only what is its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.flows.protocols import CausalFlow, CausalLayer, Condition, Kept


def nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a number that is NaN or infinite, or None where there is none."""
    floating = ((name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point())
    return next((n for n, t in floating if not (t if t.itemsize > 1 else t.float()).isfinite().all()), None)


class LayerModule(nn.Module, CausalLayer):
    """A layer whose network is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = Kept()

    def in_dtype(self, dtype: torch.dtype) -> CausalLayer:
        if dtype not in self.kept:
            with torch.inference_mode(False):
                self.kept[dtype] = copy.deepcopy(self).to(dtype=dtype)
        return self.kept[dtype]


class FlowModule(nn.Module, CausalFlow):
    """A flow whose `blocks` are its layers from the data side, and whose own buffers act on tokens, in their dtype."""

    blocks: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.fits = Kept()

    @property
    def device(self) -> torch.device:
        return next(self.buffers(recurse=False)).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.buffers(recurse=False)).dtype

    @property
    def layers(self) -> list[Any]:
        return list(reversed(self.blocks))

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, L, D) standard normal numbers.

        They are drawn on the generator's own device, so that one seed means one sample whatever the flow runs on.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        shape = (n, self.num_tokens, self.token_dim)
        return torch.randn(shape, generator=generator, device=device).to(self.device, self.dtype)


class LayerWrapper(CausalLayer):
    """A layer that answers for another one; subclasses say what they do differently."""

    def __init__(self, layer: CausalLayer) -> None:
        self.layer, self.kept = layer, Kept()
        self.number, self.block = layer.number, layer.block
        self.num_tokens, self.token_dim = layer.num_tokens, layer.token_dim
        self.hidden_dim = layer.hidden_dim

    def arrange(self, tokens: Tensor) -> Tensor:
        return self.layer.arrange(tokens)

    def restore(self, tokens: Tensor) -> Tensor:
        return self.layer.restore(tokens)

    def new_cache(self, batch: int, condition: Condition) -> Any:
        return self.layer.new_cache(batch, condition)
