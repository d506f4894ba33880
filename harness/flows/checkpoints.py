"""Checkpoints on disk: published ``.pth`` state dicts, ``.safetensors``, and the flows shipped with the package.

A checkpoint is untrusted: safetensors holds nothing but tensors, and a ``.pth`` is read with ``weights_only``, which
refuses to execute anything. Both are memory-mapped and never held twice.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from harness.errors import CheckpointError, unknown
from harness.flows.held import held_flow
from harness.flows.precision import to_dtype
from harness.flows.protocols import CausalFlow, flows
from harness.flows.published import SUFFIXES, find_checkpoint, not_there, published, sigma_in_name
from harness.flows.synthetic import synthetic_checkpoint

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
    dtype: torch.dtype = torch.float32,
) -> CausalFlow:
    """Load a flow by the name of a shipped one or from a file; its architecture is inferred from the tensors.

    Args:
        name_or_path: such as ``"digits"``, ``"tarflow-afhq-256"``, ``"afhq_model_8_768_8_8_0.07.pth"``, or
            ``"random:2-256-6-6@32"`` for a TarFlow of that shape with random weights; or a state dict of the published
            layout, or a module that has one, see `harness.flows.held`.
        dtype: of its networks; latents and tokens are float32 where it is narrower.

    Example:
        >>> flow = load_flow("digits")
        >>> flow.num_tokens, flow.image_shape
        (64, (1, 8, 8))
    """
    if not isinstance(name_or_path, str | Path):
        return held_flow(name_or_path, device, dtype)
    path = checkpoint_path(name_or_path)
    state, metadata = read_state(path)
    for _, family in flows.items():
        if family.recognises(state):
            try:
                flow = to_dtype(family.from_state(state, metadata), device, dtype)
            except CheckpointError as error:
                raise CheckpointError(f"'{path}' is not a checkpoint this harness can read: {error}") from error
            flow.source = path
            return flow
    raise CheckpointError(
        f"'{path}' is no flow of a known family ({', '.join(flows.names())}): its tensors have other names"
    )


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint file, memory-mapped on the CPU."""
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _refuse_packed(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"'{path}' cannot be read as a plain state dict (weights only): {reason}") from error
    return _plain_state(path, state), {}


def read_metadata(path: Path) -> dict[str, str]:
    """What a checkpoint says of itself besides its tensors; only safetensors files say anything."""
    if path.suffix != ".safetensors":
        return {}
    with _open_safetensors(path) as file:
        return file.metadata() or {}


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read as safetensors: {error}") from error


def _refuse_packed(path: Path) -> None:
    """Refuse an archive whose members are larger than their share of the file: torch packs nothing."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("its members are compressed, which torch never does, and may unpack to any size")


def _plain_state(path: Path, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict):
        raise CheckpointError(f"'{path}' holds a {type(state).__name__}, expected a state dict of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"'{path}' holds {name!r}: {type(tensor).__name__}, expected only tensors by name")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"'{path}': '{name}' is no plain tensor of numbers")
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > path.stat().st_size:
        raise CheckpointError(f"'{path}' claims tensors that are larger than the file")
    return state


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
