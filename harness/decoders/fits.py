"""What is fitted to a flow once, so that decoding it needs fewer iterations: guesses and corrections.

Both are linear causal maps (see `harness.decoders.maps`), fitted by ridge regression on exactly decoded samples (see
`harness.fitting.calibrate`). Long sequences have few lags and weights that all positions share; short ones look at all
predecessors, with weights for every pair of positions.

*Guess*: ``x[l] ~ bias_c[l] + sum_k A_k z_in[l - k]``, lags k from 0, with a bias for every class c and position l; in a
short sequence A, too, is the class's own.

*Correction*: with F the Jacobi map and r = F(x) - x its residual, the error that F(x) still has is J (I - J)^-1 r to
first order, and J is strictly causal; so ``e[l] ~ sum_k A_k r[l - k]`` with lags k from 1 and without bias. Where r is
0 on a prefix nothing is added to it, nor to the token behind it: the fixed point and the exact prefix stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.decoders.maps import CausalMap, DenseMap, Guess, LaggedMap
from harness.errors import CheckpointError
from harness.files import make_folder, replacing
from harness.flows.checkpoints import digest
from harness.flows.protocols import CausalFlow
from harness.flows.tap import untapped

logger = logging.getLogger(__name__)

FORMAT = "2"
FEW = 128
"""Samples fitted on at first use for a flow without a checkpoint."""


@dataclass(frozen=True)
class LayerFit:
    """What was fitted to one layer.

    Args:
        guess: of the layer's outputs, from its inputs and classes.
        corrections: one per iteration, all of one kind; the last one also stands for the iterations after it.
    """

    guess: Guess
    corrections: tuple[CausalMap, ...]

    def correction(
        self, change: Tensor, labels: Tensor | None, start: int, visits: list[tuple[int, int, int]]
    ) -> Tensor:
        """A `harness.decoders.solver.Correction`: every token by the map of its own number of updates."""
        last = len(self.corrections) - 1
        features = self.corrections[0].features(change)
        parts = [self.corrections[min(n, last)].span(features, labels, start, first, end) for first, end, n in visits]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


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

    @property
    def content(self) -> str:
        """Digest of the fits themselves."""
        content = hashlib.sha256()
        for fit in self.layers.values():
            for fitted in _named(fit).values():
                for tensor in _parts(fitted)[0].values():
                    content.update(tensor.float().cpu().contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def to(self, like: Tensor) -> Calibration:
        """The same with the device and dtype of a tensor."""
        layers = {
            number: LayerFit(_moved(fit.guess, like), tuple(_moved(fitted, like) for fitted in fit.corrections))
            for number, fit in self.layers.items()
        }
        return Calibration(self.digest, layers, self.samples)

    def save(self, path: Path) -> None:
        """Write safetensors: tensors ``layer.N.guess.weight`` and so on, the rest as metadata."""
        tensors: dict[str, Tensor] = {}
        lags: dict[str, list[int] | None] = {}
        for number, fit in self.layers.items():
            for name, fitted in _named(fit).items():
                key = f"layer.{number}.{name}"
                parts, lags[key] = _parts(fitted)
                tensors |= {f"{key}.{part}": tensor.cpu().contiguous() for part, tensor in parts.items()}
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
            maps = {key: _read(tensors, key, lags) for key, lags in json.loads(metadata["lags"]).items()}
            numbers = sorted({int(key.split(".")[1]) for key in maps})
            layers = {number: _fit(maps, number) for number in numbers}
            return cls(metadata["digest"], layers, int(metadata["samples"]))
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
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
        return _checked(given, flow.source)
    flow = untapped(flow)
    source = flow.source
    path = Path(given) if given is not None else None if source is None else stored_beside(source, ".safetensors")
    version = (path, path.stat().st_mtime_ns if path is not None and path.is_file() else 0)
    if flow not in _kept or _kept[flow][0] != version:
        if given is None and (path is None or not path.is_file()):
            fitted = _fit_now(flow, source)
        else:
            assert path is not None  # a flow without a checkpoint comes here only with a file
            fitted = _checked(Calibration.load(path), source)
        version = (path, path.stat().st_mtime_ns if path is not None else 0)
        _kept[flow] = version, fitted.to(flow.sample_latents(1))
    return _kept[flow][1]


_kept: WeakKeyDictionary[CausalFlow, tuple[tuple[Path | None, int], Calibration]] = WeakKeyDictionary()
"""What was last fitted to, or read for, the flows that are alive, and the file and time it is from."""


def _checked(calibration: Calibration, source: Path | None) -> Calibration:
    if source is not None and calibration.digest != checkpoint_digest(source):
        raise CheckpointError(f"this calibration was fitted to another checkpoint than '{source}'")
    return calibration


def _fit_now(flow: CausalFlow, source: Path | None) -> Calibration:
    from harness.fitting.calibrate import calibrate, calibrate_checkpoint  # it decodes, and so imports this package

    logger.warning("nothing is fitted to %s yet; fitting now, as `harness calibrate` does", source or "this flow")
    if source is None:
        return calibrate(flow, samples=FEW)
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


def _named(fit: LayerFit) -> dict[str, Guess | CausalMap]:
    return {"guess": fit.guess} | {f"correction.{i}": fitted for i, fitted in enumerate(fit.corrections)}


def _parts(fitted: Guess | CausalMap) -> tuple[dict[str, Tensor], list[int] | None]:
    """The tensors of a map, and its lags unless it is dense."""
    if isinstance(fitted, Guess):
        parts, lags = _parts(fitted.map)
        return parts | {"bias": fitted.bias}, lags
    return {"weight": fitted.weight}, list(fitted.lags) if isinstance(fitted, LaggedMap) else None


def _read(tensors: Mapping[str, Tensor], key: str, lags: list[int] | None) -> Guess | CausalMap:
    """Undo `_parts`.

    Raises:
        KeyError: a tensor is missing.
        ValueError: shapes that belong to no map.
    """
    weight, bias = tensors[f"{key}.weight"], tensors.get(f"{key}.bias")
    if lags is None:
        fits = weight.ndim == 5 and weight.shape[1:3] == weight.shape[3:]
    else:
        fits = weight.ndim == 2 and weight.shape[0] == len(lags) * weight.shape[1] and lags == sorted(set(lags))
    if not fits or (bias is not None and (bias.ndim != 3 or bias.shape[2] != weight.shape[-1])):
        raise ValueError(f"'{key}' has shape {tuple(weight.shape)} for lags {lags}")
    if lags is not None and not all(isinstance(lag, int) and lag >= 0 for lag in lags):
        raise ValueError(f"'{key}' has lags {lags}")
    fitted = DenseMap(weight) if lags is None else LaggedMap(tuple(lags), weight)
    return fitted if bias is None else Guess(fitted, bias)


def _fit(maps: Mapping[str, Guess | CausalMap], number: int) -> LayerFit:
    guess, corrections = maps[f"layer.{number}.guess"], list[CausalMap]()
    while (key := f"layer.{number}.correction.{len(corrections)}") in maps:
        corrections.append(_correction(key, maps[key]))
    kinds = {getattr(fitted, "lags", None) for fitted in corrections}
    if not isinstance(guess, Guess) or len(kinds) != 1:
        raise ValueError(f"layer {number} has no guess, or no corrections of one kind")
    return LayerFit(guess, tuple(corrections))


def _correction(key: str, fitted: Guess | CausalMap) -> CausalMap:
    """A correction, once it is known to be strictly causal."""
    if isinstance(fitted, LaggedMap) and min(fitted.lags) >= 1:
        return fitted
    if isinstance(fitted, DenseMap) and not torch.tril(fitted.weight.abs().amax(dim=(0, 2, 4))).any():
        return fitted
    raise ValueError(f"'{key}' is not a strictly causal map")


M = TypeVar("M")


def _moved(fitted: M, like: Tensor) -> M:
    """The same map with the device and dtype of a tensor."""
    values = {field.name: getattr(fitted, field.name) for field in fields(fitted)}  # type: ignore[arg-type]
    moved = {
        name: value.to(like) if isinstance(value, Tensor) else _moved(value, like) if is_dataclass(value) else value
        for name, value in values.items()
    }
    return replace(fitted, **moved)  # type: ignore[type-var]
