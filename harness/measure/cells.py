"""From a matrix to cells: the product of datasets, decoders, options and grid, each with a content key.

A key hashes what determines a result, never a place in a list, so it does not depend on the order of anything.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from harness.decoders import Decoder, Guidance, build_decoder, decoders
from harness.errors import HarnessError
from harness.fitting import prepare
from harness.flows import CausalFlow, load_flow
from harness.measure.matrix import DatasetTable, DecoderTable, Matrix
from harness.measure.sources import settings_of, source_of
from harness.runs.environment import ROOT, code_version, digest_sources

BASELINE = "sequential"


@dataclass(frozen=True)
class Cell:
    """One configuration that is measured; plain values only, so that it travels to other processes.

    Args:
        cell_id: content hash of what determines the result.
        cell_key: the same without the code version.
        group_id: cells of one group are timed in paired rounds.
        data_root: folder of the real images, or None for the default.
        data_size: side of the real images, or None for the flow's.
        checkpoint: name or file name.
        checkpoint_path: the file.
        given: the options that differ from the decoder's defaults, as JSON: what it is built from.
        options: all options but tau, as JSON.
        tau: None for a decoder that takes none.
        guidance: JSON, or None.
        denoise: noise that a denoising step after decoding takes out, in image units, or None for no such step.
        absent: why the checkpoint of an optional dataset is not there; such a cell is skipped.
        device: ``"cpu"`` or ``"cuda"``.
        fitted: digest of the calibration or schedule that the decoder reads, or None.
    """

    cell_id: str
    cell_key: str
    group_id: str
    dataset: str
    data_root: str | None
    data_size: int | None
    checkpoint: str
    checkpoint_path: str
    checkpoint_digest: str
    decoder: str
    label: str
    given: str
    options: str
    tau: float | None
    guidance: str | None
    batch_size: int
    seed: int
    dtype: str
    device: str
    code_version: str
    denoise: float | None = None
    absent: str | None = None
    fitted: str | None = None

    def build(self) -> Decoder:
        """The decoder of this cell."""
        return _build(self.decoder, self.given, self.tau)

    def build_guidance(self) -> Guidance | None:
        """The guidance of this cell."""
        return None if self.guidance is None else Guidance(**json.loads(self.guidance))

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the flow's parameters and the latents."""
        return getattr(torch, self.dtype)

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that every row of this cell carries."""
        return {"cell_id": self.cell_id, "cell_key": self.cell_key}

    @property
    def title(self) -> str:
        """What messages call this cell."""
        tau = "" if self.tau is None else f" tau {self.tau:g}"
        return f"{self.label}{tau}, batch {self.batch_size}"


@dataclass(frozen=True)
class _Variant:
    """A decoder with its options, before it meets the grid."""

    name: str
    label: str
    taus: tuple[float | None, ...]
    given: str
    options: str
    code_version: str


def expand(matrix: Matrix, data_root: str | None = None) -> list[Cell]:
    """All cells of a matrix that its filters leave, each once, those to be skipped among them.

    Every decoder is built once with every option, so nothing is measured before everything is known to be sound.

    Args:
        matrix: what to measure.
        data_root: where checkpoints are looked for besides, see `checkpoint_path`.

    Raises:
        HarnessError: an unknown decoder, an option it does not take, a checkpoint that is not there and not optional,
            two decoders of one label, or filters that leave nothing.
    """
    device = resolve_device(matrix.device)
    variants = [variant for table in matrix.decoders for variant in _variants(table, matrix)]
    _refuse_shared_labels(variants)
    cells = {
        cell.cell_id: cell
        for dataset in matrix.datasets
        for cell in _cells(dataset, variants, matrix, device, data_root)
        if _wanted(cell, matrix)
    }
    _flow.cache_clear()  # a flow may be large, and is loaded again where it is measured
    _decoder.cache_clear()  # a name may mean another class the next time
    if not cells:
        raise HarnessError(f"the filters of matrix '{matrix.name}' leave no cell")
    return list(cells.values())


def groups(cells: list[Cell]) -> dict[str, list[Cell]]:
    """Cells by `group_id`, both in the order given."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.group_id, []).append(cell)
    return found


def resolve_device(name: str) -> str:
    """``"cpu"`` or ``"cuda"``; ``"auto"`` takes CUDA where there is one.

    Raises:
        HarnessError: CUDA was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name == "cuda" and not available:
        raise HarnessError("device 'cuda' was asked for, but torch finds no CUDA device here; use 'cpu' or 'auto'")
    return name


def _variants(table: DecoderTable, matrix: Matrix) -> Iterator[_Variant]:
    cls = decoders.get(table.name)
    if table.tau is not None and not cls.takes_tau:
        raise HarnessError(f"decoder '{table.name}' takes no tau; remove it from its entry in matrix '{matrix.name}'")
    taus = tuple(table.tau or matrix.grid.tau) if cls.takes_tau else (None,)
    gridded = {name: value["grid"] for name, value in table.options.items() if _is_grid(table.name, name, value)}
    fixed = {name: value for name, value in table.options.items() if name not in gridded}
    for values in product(*gridded.values()):
        chosen = dict(zip(gridded, values, strict=True))
        for tau in taus:  # a threshold out of range is found here too
            decoder = build_decoder(table.name, **({} if tau is None else {"tau": tau}), **fixed, **chosen)
        options = {name: value for name, value in decoder.options().items() if name != "tau"}
        given = _not_default(cls, options)
        named = chosen if table.label else {name: value for name, value in (fixed | chosen).items() if name in given}
        yield _Variant(
            name=table.name,
            label=" ".join([table.label or table.name, *(f"{name}={_shown(named[name])}" for name in sorted(named))]),
            taus=taus,
            given=_json(given, table.name),
            options=_json(options, table.name),
            code_version=_version_of(cls),
        )


def _is_grid(decoder: str, name: str, value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if set(value) != {"grid"} or not isinstance(value["grid"], list) or not value["grid"]:
        raise HarnessError(f"option '{name}' of decoder '{decoder}' is a table; a product reads {{ grid = [...] }}")
    return True


def _cells(
    dataset: DatasetTable, variants: list[_Variant], matrix: Matrix, device: str, data_root: str | None
) -> Iterator[Cell]:
    source = source_of(dataset, data_root)
    grid = matrix.grid
    settings = settings_of(dataset, source, grid)
    path = "" if source.path is None else str(source.path.resolve())
    for (guidance, denoise), batch_size, seed in product(settings, grid.batch_sizes, grid.seeds):
        shared: dict[str, Any] = {
            "dataset": dataset.name,
            "data_size": dataset.size,
            "checkpoint_digest": source.digest,
            "guidance": guidance,
            "batch_size": batch_size,
            "seed": seed,
            "dtype": matrix.dtype,
            "device": device,
        } | ({} if denoise is None else {"denoise": denoise})  # so that the key of a cell without it is what it was
        for variant in variants:
            for tau in variant.taus:
                key = shared | {"decoder": variant.name, "given": variant.given, "tau": tau}
                precise = key | {"options": variant.options, "code_version": variant.code_version}
                if fitted := _fitted(variant, tau, source.path, device, matrix.dtype, batch_size):
                    precise["fitted"] = fitted
                yield Cell(
                    **precise,
                    cell_id=_hash(precise),
                    cell_key=_hash(key),
                    group_id=_hash(shared),
                    label=variant.label,
                    checkpoint=source.name,
                    checkpoint_path=path,
                    data_root=dataset.root,
                    absent=source.absent,
                )


def _fitted(
    variant: _Variant, tau: float | None, path: Path | None, device: str, dtype: str, batch_size: int
) -> str | None:
    """Digest of what was fitted to the flow or tuned for it, where the decoder reads it; made now if it is missing."""
    decoder = _decoder(variant.name, variant.given, tau)
    if path is None or not decoder.reads_fits:
        return None
    flow = _flow(path, device, dtype)
    prepare(decoder, flow, batch_size)
    return decoder.fits_digest(flow, batch_size)


def _build(name: str, given: str, tau: float | None) -> Decoder:
    return build_decoder(name, **({} if tau is None else {"tau": tau}), **json.loads(given))


_decoder = lru_cache(maxsize=1024)(_build)
"""Every cell is asked what its decoder reads; few decoders are asked of many cells."""


@lru_cache(maxsize=1)
def _flow(path: Path, device: str, dtype: str) -> CausalFlow:
    return load_flow(path, device=device, dtype=getattr(torch, dtype))


def _wanted(cell: Cell, matrix: Matrix) -> bool:
    facts = vars(cell)
    included = not matrix.include or any(entry.matches(facts) for entry in matrix.include)
    return included and not any(entry.matches(facts) for entry in matrix.exclude)


def _refuse_shared_labels(variants: list[_Variant]) -> None:
    distinct = {(variant.label, variant.name, variant.options) for variant in variants}
    label, count = Counter(label for label, *_ in distinct).most_common(1)[0]
    if count > 1:
        raise HarnessError(f"{count} different decoders are labelled '{label}'; give each a label of its own")


def _not_default(cls: type[Decoder], options: dict[str, Any]) -> dict[str, Any]:
    """The options whose value is not the constructor's default: adding an option to a decoder changes no key."""
    parameters = inspect.signature(cls).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {
        name: value
        for name, value in options.items()
        if name in defaults and json.dumps(value, default=str) != json.dumps(defaults[name], default=str)
    }


def _version_of(cls: type[Decoder]) -> str:
    """The code version, and the source of a decoder that is not part of this package."""
    source = inspect.getsourcefile(cls)
    if source is None or Path(source).resolve().is_relative_to(ROOT.resolve()):
        return code_version()
    return _hash([code_version(), digest_sources([Path(source)], Path(source).parent)])


def _json(values: dict[str, Any], owner: str) -> str:
    try:
        return json.dumps(values, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise HarnessError(f"the options of '{owner}' are not plain values: {error}") from error


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
