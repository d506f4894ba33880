"""What is fitted to a flow once, so that decoding it needs fewer iterations: guesses and corrections.

Both are linear maps over a few lags of the token sequence, in the layer's own order, shared by all positions and fitted
by ridge regression on exactly decoded samples (see `harness.calibration`).

*Guess*: ``x[l] ~ bias + sum_k A_k z_in[l - k]``, lags k from 0.

*Correction*: with F the Jacobi map and r = F(x) - x its residual, the error that F(x) still has is J (I - J)^-1 r to
first order, and J is strictly causal; so ``e[l] ~ sum_k A_k r[l - k]`` with lags k from 1 and without bias. Where r is
0 on a prefix nothing is added to it, nor to the token behind it: the fixed point and the exact prefix stay as they are.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

import platformdirs
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import CheckpointError
from harness.files import make_folder, replacing
from harness.flows.base import CausalFlow
from harness.flows.checkpoints import digest
from harness.flows.tap import untapped

logger = logging.getLogger(__name__)

FORMAT = "1"


@dataclass(frozen=True)
class LaggedMap:
    """A linear map of each token's predecessors, the same for every position; tokens before the first count as 0.

    Args:
        lags: k >= 0, ascending.
        weight: (lags * D, D), lag-major.
        bias: (D,), or None for none.
    """

    lags: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, W, D) -> (B, W, D)."""
        features = lagged(tokens, self.lags)
        if self.bias is None:
            return features @ self.weight
        return torch.addmm(self.bias, features.flatten(0, 1), self.weight).view_as(tokens)


def lagged(tokens: Tensor, lags: tuple[int, ...]) -> Tensor:
    """(B, W, D) -> (B, W, lags * D): for each token those `lags` before it, zeros where there are none."""
    batch, window, dim = tokens.shape
    padded = F.pad(tokens, (0, 0, lags[-1], 0))
    return padded.index_select(1, _places(window, lags, tokens.device)).view(batch, window, len(lags) * dim)


@lru_cache(maxsize=256)
def _places(window: int, lags: tuple[int, ...], device: torch.device) -> Tensor:
    """(window * lags,) where each token's lags are in a sequence that is padded by the largest lag."""
    positions = torch.arange(window, device=device)[:, None] + lags[-1]
    return (positions - torch.tensor(lags, device=device)).flatten()


@dataclass(frozen=True)
class LayerFit:
    """What was fitted to one layer.

    Args:
        guess: of the layer's outputs, from its inputs.
        corrections: one per iteration, all with the same lags; the last one also stands for the iterations after it.
    """

    guess: LaggedMap
    corrections: tuple[LaggedMap, ...]

    def correction(self, change: Tensor, visits: list[tuple[int, int, int]]) -> Tensor:
        """A `harness.decoders.windows.Correction`: every token by the map of its own number of updates."""
        maps = [self.corrections[min(updates, len(self.corrections) - 1)] for _, _, updates in visits]
        if len(maps) == 1:
            return maps[0](change)
        features = lagged(change, maps[0].lags)
        parts = [features[:, first:end] @ fitted.weight for (first, end, _), fitted in zip(visits, maps, strict=True)]
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Calibration:
    """The fits of all layers of one checkpoint.

    Args:
        digest: SHA-256 of the checkpoint.
        layers: by place in decoding order.
        samples: how many exactly decoded samples they were fitted on.
    """

    digest: str
    layers: Mapping[int, LayerFit]
    samples: int

    def to(self, device: torch.device) -> Calibration:
        """The same on a device."""
        return Calibration(self.digest, {n: _moved(fit, device) for n, fit in self.layers.items()}, self.samples)

    def save(self, path: Path) -> None:
        """Write safetensors: tensors ``layer.N.guess`` and so on, the rest as metadata."""
        tensors, lags = {}, {}
        for number, fit in self.layers.items():
            for name, fitted in _named(fit).items():
                key = f"layer.{number}.{name}"
                tensors[f"{key}.weight"], lags[key] = fitted.weight.cpu().contiguous(), list(fitted.lags)
                if fitted.bias is not None:
                    tensors[f"{key}.bias"] = fitted.bias.cpu().contiguous()
        metadata = {"format": FORMAT, "digest": self.digest, "samples": str(self.samples), "lags": json.dumps(lags)}
        make_folder(path.parent)
        with replacing(path) as partial:
            save_file(tensors, partial, metadata)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            CheckpointError: no such file, or one that holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"the calibration '{path}' cannot be read: {error}") from error
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"'{path}' is no calibration of format {FORMAT}; run `harness calibrate` again")
        try:
            maps = {key: _map(tensors, key, tuple(lags)) for key, lags in json.loads(metadata["lags"]).items()}
            numbers = sorted({int(key.split(".")[1]) for key in maps})
            layers = {number: _fit(maps, number) for number in numbers}
            return cls(metadata["digest"], layers, int(metadata["samples"]))
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"the calibration '{path}' is damaged: {error}; run `harness calibrate`") from error


def calibration_of(flow: CausalFlow, given: Calibration | str | Path | None = None) -> Calibration:
    """The calibration of a flow, on the flow's device.

    When nothing has been fitted to the flow yet, it is now: stored for its checkpoint, or kept for as long as a flow
    lives that has none.

    Args:
        flow: what is decoded.
        given: a calibration, or its file; None for the one of this flow.

    Raises:
        CheckpointError: the file is missing or damaged, or belongs to another checkpoint.
    """
    if isinstance(given, Calibration):
        return _checked(given, getattr(flow, "source", None))
    flow = untapped(flow)
    source: Path | None = getattr(flow, "source", None)
    path = Path(given) if given is not None else None if source is None else stored_beside(source, ".safetensors")
    version = (path, path.stat().st_mtime_ns if path is not None and path.is_file() else 0)
    if flow not in _kept or _kept[flow][0] != version:
        if given is None and (path is None or not path.is_file()):
            fitted = _fit_now(flow, source)
        else:
            assert path is not None  # a flow without a checkpoint comes here only with a file
            fitted = _checked(Calibration.load(path), source)
        version = (path, path.stat().st_mtime_ns if path is not None else 0)
        _kept[flow] = version, fitted.to(flow.sample_latents(1).device)
    return _kept[flow][1]


_kept: WeakKeyDictionary[CausalFlow, tuple[tuple[Path | None, int], Calibration]] = WeakKeyDictionary()
"""What was last fitted to, or read for, the flows that are alive, and the file and time it is from."""


def _checked(calibration: Calibration, source: Path | None) -> Calibration:
    if source is not None and calibration.digest != checkpoint_digest(source):
        raise CheckpointError(f"this calibration was fitted to another checkpoint than '{source}'")
    return calibration


def _fit_now(flow: CausalFlow, source: Path | None) -> Calibration:
    from harness.calibration import calibrate, calibrate_checkpoint  # it decodes, and so imports this package

    logger.warning("nothing is fitted to %s yet; fitting now, as `harness calibrate` does", source or "this flow")
    if source is None:
        return calibrate(flow, samples=128)
    return Calibration.load(calibrate_checkpoint(flow, source))


def stored_beside(source: Path, suffix: str) -> Path:
    """Where something derived from a checkpoint is stored, keyed by its digest: beside it, or in the user's cache.

    The cache is used when it already has the file, or when the checkpoint's folder cannot be written to.
    """
    name = checkpoint_digest(source)[:16] + suffix
    beside = source.parent / "calibration" / name
    cached = platformdirs.user_cache_path("nf-decoding-harness") / "calibration" / name
    return beside if beside.is_file() or (os.access(source.parent, os.W_OK) and not cached.is_file()) else cached


def checkpoint_digest(source: Path) -> str:
    """SHA-256 of a checkpoint; computed once for a file that does not change."""
    status = source.stat()
    return _digest(source, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=32)
def _digest(source: Path, modified_ns: int, size: int) -> str:
    return digest(source)


def _named(fit: LayerFit) -> dict[str, LaggedMap]:
    return {"guess": fit.guess} | {f"correction.{i}": fitted for i, fitted in enumerate(fit.corrections)}


def _map(tensors: Mapping[str, Tensor], key: str, lags: tuple[int, ...]) -> LaggedMap:
    weight = tensors[f"{key}.weight"]
    if weight.ndim != 2 or weight.shape[0] != len(lags) * weight.shape[1] or list(lags) != sorted(set(lags)):
        raise ValueError(f"'{key}' has shape {tuple(weight.shape)} for lags {list(lags)}")
    return LaggedMap(lags, weight, tensors.get(f"{key}.bias"))


def _fit(maps: Mapping[str, LaggedMap], number: int) -> LayerFit:
    corrections: list[LaggedMap] = []
    while (key := f"layer.{number}.correction.{len(corrections)}") in maps:
        if min(maps[key].lags) < 1 or maps[key].bias is not None:
            raise ValueError(f"'{key}' is not strictly causal")
        if corrections and maps[key].lags != corrections[0].lags:
            raise ValueError(f"'{key}' has other lags than the first correction")
        corrections.append(maps[key])
    return LayerFit(maps[f"layer.{number}.guess"], tuple(corrections))


def _moved(fit: LayerFit, device: torch.device) -> LayerFit:
    def moved(fitted: LaggedMap) -> LaggedMap:
        bias = None if fitted.bias is None else fitted.bias.to(device)
        return LaggedMap(fitted.lags, fitted.weight.to(device), bias)

    return LayerFit(moved(fit.guess), tuple(map(moved, fit.corrections)))
