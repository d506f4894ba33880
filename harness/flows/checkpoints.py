"""Checkpoints on disk: published ``.pth`` state dicts, ``.safetensors``, and the flows shipped with the package.

A checkpoint is untrusted: safetensors holds nothing but tensors, and a ``.pth`` is read with ``weights_only``, which
refuses to execute anything. Both are memory-mapped and never held twice. What a training script saved, with weights
somewhere in it, is unwrapped once, to a file in the user's cache that holds the weights alone and is from then on the
checkpoint: so its digest is that of the tensors in use.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.errors import CheckpointError, unknown
from harness.files import (
    TORCH,
    cache_folder,
    in_order,
    kind_of,
    make_folder,
    not_as,
    read_safetensors,
    replacing,
)
from harness.flows.held import held_state
from harness.flows.modules import nonfinite
from harness.flows.precision import Dtype, to_dtype
from harness.flows.protocols import CausalFlow, flows
from harness.flows.published import SUFFIXES, find_checkpoint, not_there, published, sigma_in_name
from harness.flows.synthetic import synthetic_checkpoint
from harness.flows.wrapped import State, choose, weights_in

logger = logging.getLogger(__name__)

ASSETS = Path(str(files("harness.flows"))) / "assets"


def shipped() -> list[str]:
    """Names of the flows shipped with the package."""
    return sorted(path.stem for path in ASSETS.glob("*.safetensors"))


def checkpoint_path(name_or_path: str | Path, root: Path | str | None = None) -> Path:
    """The file of a flow: a shipped, a published or one's own by name, any by path, one of random weights by shape.

    Args:
        root: of the data, where published checkpoints and one's own are looked for; by default $HARNESS_DATA. The
            user's cache folder is looked into besides.
    """
    name = str(name_or_path)
    if name.startswith("random:"):
        return synthetic_checkpoint(name)
    if name in shipped():
        return ASSETS / f"{name}.safetensors"
    path = Path(name).expanduser()
    try:
        there = path.exists()
    except OSError as error:  # too long for a file's name
        raise CheckpointError(f"no checkpoint can be at '{name[:80]}': {error.strerror}") from error
    if path.suffix in SUFFIXES or there:
        if not path.is_file():
            raise CheckpointError(f"there is no checkpoint at '{path}'")
        return path
    found = find_checkpoint(name, root) if path.name == name else None
    if found is not None:
        return found
    if name in published():
        raise not_there(name, root)
    known = [*shipped(), *published()]
    raise CheckpointError(f"{unknown('flow', name, known)}; or give the path of a .pth or .safetensors file")


def load_flow(
    name_or_path: str | Path | Mapping[str, Tensor] | nn.Module,
    device: str | torch.device = "cpu",
    dtype: Dtype = torch.float32,
    weights: str | None = None,
) -> CausalFlow:
    """Load a flow by the name of a shipped one or from a file; its architecture is inferred from the tensors.

    Args:
        name_or_path: such as ``"digits"``, ``"tarflow-afhq-256"``, ``"afhq_model_8_768_8_8_0.07.pth"``, or
            ``"random:2-256-6-6@32"`` for a TarFlow of that shape with random weights; or a state dict, or a module that
            has one: they are copied, and what is fitted to the flow is kept with it.
        dtype: of its networks; latents and tokens are float32 where it is narrower. ``"tf32"`` is float32 whose
            products are made in TF32 while the flow is decoded, on CUDA.
        weights: which ones, where there are several, see `unwrapped`.

    Example:
        >>> flow = load_flow("digits")
        >>> flow.num_tokens, flow.image_shape
        (64, (1, 8, 8))
    """
    if not isinstance(name_or_path, str | Path):
        return _built("the state dict", held_state(name_or_path, weights), {}, device, dtype)
    path = unwrapped(checkpoint_path(name_or_path), weights)
    flow = _built(f"'{path}'", *read_state(path), device, dtype)
    flow.source = path
    return flow


def _built(title: str, state: State, metadata: dict[str, str], device: str | torch.device, dtype: Dtype) -> CausalFlow:
    family = next(family for _, family in flows.items() if family.recognises(state))
    try:
        flow = to_dtype(family.from_state(state, metadata), device, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{title} is not a checkpoint this harness can read: {error}") from error
    if (broken := nonfinite(flow.state_dict())) is not None:
        name = nonfinite(state)
        what = f"'{name}' holds NaN or infinite weights" if name else f"'{broken}' holds weights too large for {dtype}"
        raise CheckpointError(f"{title} cannot be sampled: {what}; every weight is to be finite")
    return flow


def unwrapped(path: Path, weights: str | None = None) -> Path:
    """The file of the weights of a checkpoint alone: itself, or a copy in the user's cache of those in it.

    Weights are looked for below keys, as in ``{"state_dict": ..., "ema": ...}``, and behind the prefixes of wrappers,
    as ``module.`` and ``_orig_mod.``; what else is there, such as an optimizer's state, is left aside and said.

    Args:
        weights: their key where there are several, such as ``"ema"``; by default the only ones or the EMA.

    Raises:
        CheckpointError: it cannot be read, holds no flow of a known family, several of which none is preferred, or none
            with this key.
    """
    status = path.stat()
    return _unwrapped(path, weights, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=32)
def _unwrapped(path: Path, wanted: str | None, modified_ns: int, size: int) -> Path:
    content, metadata = _read(path)
    if not (found := weights_in(content)):
        _require_plain(path, content)
        raise CheckpointError(
            f"'{path}' is no flow of a known family ({', '.join(flows.names())}): its tensors have other names"
        )
    try:
        chosen, said = choose(found, content, wanted)
    except CheckpointError as error:
        raise CheckpointError(f"'{path}' {_printable(str(error))}") from error
    if said is None:
        return path
    logger.warning("'%s' %s", path, _printable(said))
    _require_plain(path, chosen.state)
    folder = hashlib.sha256(f"{digest(path)} {chosen.path}".encode(errors="replace")).hexdigest()[:16]
    alone = cache_folder() / "unwrapped" / folder / f"{path.stem}.safetensors"
    if not alone.is_file():
        make_folder(alone.parent)
        with replacing(alone) as partial:
            save_file(
                {name: tensor.contiguous().clone() for name, tensor in chosen.state.items()}, partial, metadata or None
            )
            if len(metadata) > 1:
                partial.write_bytes(in_order(partial.read_bytes()))
    return alone


def read_state(path: Path) -> tuple[State, dict[str, str]]:
    """Tensors and metadata of a checkpoint file that holds nothing else, memory-mapped on the CPU."""
    content, metadata = _read(path)
    _require_plain(path, content)
    return dict(content), metadata


def read_metadata(path: Path) -> dict[str, str]:
    """What a checkpoint says of itself besides its tensors; only safetensors files say anything."""
    return _read(path)[1] if path.suffix == ".safetensors" else {}


def _read(path: Path) -> tuple[Mapping[Any, Any], dict[str, str]]:
    """What a file holds, tensors by name and whatever else, and its metadata."""
    if path.suffix == ".safetensors":
        try:
            return read_safetensors(path)
        except ValueError as error:
            raise CheckpointError(f"'{path}' cannot be read as safetensors: {error}") from error
    try:
        zipped = zipfile.is_zipfile(path)
        packed = zipped and _packed(path)
        with warnings.catch_warnings(action="ignore"):  # of the kind of pickle that it is
            content = None if packed else torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        reason = f"cannot be read as a plain state dict (weights only): {_reason(path, error)}"
        raise CheckpointError(f"'{path}' {reason}") from error
    if packed:
        raise CheckpointError(
            f"'{path}' cannot be read: its members are compressed, which torch never does, and may unpack to any size"
        )
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' holds a {type(content).__name__}, expected a state dict of tensors")
    return content, {}


def _reason(path: Path, error: Exception) -> str:
    """Why torch did not read a file, without its own words: they advise to read it with code and all."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    kind, foreign = kind_of(path), re.search(r"GLOBAL ([\w.]{1,80})", str(error))
    if foreign and kind in (TORCH, "a pickle"):
        return (
            f"it holds a Python object, {foreign[1]}, and objects may run code when they are read; expected tensors "
            "and plain values, as torch.save(model.state_dict(), ...) writes them"
        )
    return not_as(path, TORCH)


def _packed(path: Path) -> bool:
    """Whether an archive's members are larger than their share of the file."""
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist()) > path.stat().st_size


def _printable(said: str) -> str:
    """A sentence with names from a file, none of which reaches a terminal as an escape code."""
    return "".join(letter if letter.isprintable() else "?" for letter in said)


def _require_plain(path: Path, state: Mapping[Any, Any]) -> None:
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"'{path}' holds {str(name)[:80]!r}: {type(tensor).__name__}, expected only tensors by name"
            )
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"'{path}': '{name}' is no plain tensor of numbers")
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > path.stat().st_size:
        raise CheckpointError(f"'{path}' claims tensors that are larger than the file")


def training_noise(path: Path) -> float:
    """Standard deviation of the noise that a checkpoint was trained with, in image units.

    It is in the metadata of checkpoints that this harness wrote, and the last part of a published one's name, as in
    ``afhq_model_8_768_8_8_0.07.pth``.
    """
    stated = read_metadata(path).get("sigma")
    try:
        sigma = float(stated) if stated else sigma_in_name(path)
    except ValueError:
        sigma = None
    if not sigma or not 0 < sigma < math.inf:
        raise CheckpointError(f"'{path}' does not tell the noise it was trained with; state it as a number")
    return sigma


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal: what identifies a checkpoint in every table."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
