"""Flows of any shape with random weights, by name: for what a decode costs, never for what it looks like.

``random:2-256-6-6@32`` is a TarFlow of patch 2, 256 channels, 6 blocks of 6 transformer layers each on 32x32 colour
images. It is written as a checkpoint to the user's cache when it is first asked for, and is from then on a file like
any other, digest and all. Its numbers come from numpy's own generator in single precision, so that they are the same
on every machine.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import CheckpointError, HarnessError
from harness.files import cache_folder, make_folder, replacing
from harness.flows.coupled import LOG_SCALE_GAIN, SHIFT_GAIN
from harness.flows.tarflow import TarFlow, TarFlowConfig

logger = logging.getLogger(__name__)

_NAME = re.compile(r"random:(\d+)-(\d+)-(\d+)-(\d+)@(\d+)")
"""``random:PATCH-CHANNELS-BLOCKS-LAYERS@SIZE``, as the names of published checkpoints begin."""


def synthetic_config(name: str) -> TarFlowConfig:
    """The shape that a name such as ``"random:8-768-8-8@256"`` stands for.

    Example:
        >>> synthetic_config("random:8-768-8-8@256").num_tokens
        1024
    """
    match = _NAME.fullmatch(name)
    if match is None or "0" in match.groups():
        raise CheckpointError(f"'{name}' should read random:PATCH-CHANNELS-BLOCKS-LAYERS@SIZE, as random:2-256-6-6@32")
    patch, channels, blocks, layers, size = map(int, match.groups())
    try:
        return TarFlowConfig(3, size, patch, channels, blocks, layers)
    except HarnessError as error:
        raise CheckpointError(f"'{name}' is no TarFlow: {error}") from error


def synthetic_checkpoint(name: str) -> Path:
    """The file of a flow with random weights; written first, if it is not there yet."""
    config = synthetic_config(name)
    path = cache_folder() / "random" / f"{name.replace(':', '-')}.safetensors"
    if not path.is_file():
        logger.warning("writing random weights to %s", path)
        make_folder(path.parent)
        with replacing(path) as partial:
            save_file(synthetic_state(config), partial)
    return path


def synthetic_state(config: TarFlowConfig, seed: int = 0) -> dict[str, Tensor]:
    """A state dict in the published layout.

    Linear maps are as PyTorch initialises them, uniform within the root of their fan-in, except the last one, which
    would be zero and the flow the identity: its gains are those of `harness.flows.coupled`.
    """
    rng = np.random.default_rng(seed)

    def uniform(shape: torch.Size, bound: float) -> Tensor:
        unit = rng.random(tuple(shape), dtype=np.float32)
        unit *= np.float32(2)
        unit -= np.float32(1)
        unit *= np.float32(bound)
        return torch.from_numpy(unit)

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in TarFlow(config).state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        if name == "var" or name.endswith("norm.weight"):
            state[name] = torch.ones(shape)
        elif name.endswith("bias"):
            state[name] = torch.zeros(shape)
        elif name.endswith("proj_out.weight"):
            state[name] = uniform(shape, (3 / shape[1]) ** 0.5)
            state[name][: config.token_dim] *= LOG_SCALE_GAIN
            state[name][config.token_dim :] *= SHIFT_GAIN
        else:
            state[name] = uniform(shape, shape[-1] ** -0.5)
    return state
