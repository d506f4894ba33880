"""What flows and layers that are torch modules share, so that a family states only what is its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import CheckpointError, HarnessError
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, Kept


def nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a number that is NaN or infinite, or None where there is none."""
    floating = ((name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point())
    return next((n for n, t in floating if not (t if t.itemsize > 1 else t.float()).isfinite().all()), None)


def dimensions(shape: Iterable[int]) -> str:
    """A shape in words, as errors tell it."""
    return " x ".join(map(str, shape))


def shape_of(state: dict[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with so many dimensions."""
    if name not in state:
        raise CheckpointError(f"tensor '{name}' is missing")
    if state[name].ndim != ndim or 0 in state[name].shape:
        raise CheckpointError(
            f"'{name}' has shape {dimensions(state[name].shape)}, expected {ndim} dimensions, none empty"
        )
    return tuple(state[name].shape)


def count_of(state: dict[str, Tensor], prefix: str) -> int:
    """How many numbered parts the names below a prefix tell of."""
    parts = {name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)}
    if parts != {str(i) for i in range(len(parts))}:
        raise CheckpointError(f"'{prefix}*' is not numbered 0, 1, 2, ...")
    return len(parts)


def assign(module: nn.Module, state: Mapping[str, Tensor], title: str) -> None:
    """Let a module use the tensors of a state dict as they are; a `CheckpointError` where they are not its own."""
    wanted = module.state_dict()
    if missing := sorted(set(wanted) - set(state)):
        raise CheckpointError(f"{len(missing)} tensors are missing, the first is '{missing[0]}'")
    if extra := sorted(set(state) - set(wanted)):
        raise CheckpointError(f"{len(extra)} tensors belong to no {title}, the first is '{extra[0]}'")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"'{name}' has shape {dimensions(state[name].shape)}, expected {dimensions(tensor.shape)}"
            )
        if not state[name].is_floating_point():
            raise CheckpointError(f"'{name}' holds {state[name].dtype}, expected floating-point numbers")
    module.load_state_dict(state, assign=True)


def embedding(*shape: int) -> nn.Parameter:
    """Small normal numbers; none on the meta device, where drawing them would import torch's compiler."""
    empty = torch.empty(shape)
    return nn.Parameter(empty if empty.is_meta else nn.init.normal_(empty, std=1e-2))


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

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        """As any module does. What was made for the flow is of its device, dtype and weights there, and goes."""
        before = self.device, self.dtype
        super()._apply(*arguments, **options)
        if (self.device, self.dtype) != before:
            for kept in (self.fits, *(layer.kept for layer in self.layers)):
                kept.clear()
        return self

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

    def require_images(self, images: Tensor) -> None:
        """Raises HarnessError: they are not (B, C, H, W) of the flow's shape."""
        shape = self.image_shape or ()
        if images.ndim != 4 or images.shape[1:] != shape:
            raise HarnessError(f"expected images of shape (B, {dimensions(shape)}), got {tuple(images.shape)}")

    def checked(self, labels: Tensor, batch: int) -> Tensor:
        """Labels on the flow's device; a `HarnessError` where it has no classes, or these are none of its own."""
        if not self.num_classes:
            raise HarnessError("labels were given, but this flow has no classes")
        labels = torch.as_tensor(labels, device=self.device)
        if labels.shape != (batch,) or labels.is_floating_point():
            raise HarnessError(f"expected {batch} integer labels, got {labels.dtype} of shape {tuple(labels.shape)}")
        if int(labels.max()) >= self.num_classes:
            raise HarnessError(
                f"label {int(labels.max())} is out of range: this flow has classes 0 to {self.num_classes - 1}"
            )
        return labels


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
