"""From a matrix to cells: the product of datasets, decoders, options and grid. It only reads."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from harness.decoders import Decoder, build_decoder, decoders
from harness.decoders.decoder import decoder_class
from harness.errors import HarnessError, unknown
from harness.flows import CausalFlow
from harness.flows.precision import require_products
from harness.measure.cells import Cell, content_hash, resolve_device
from harness.measure.matrix import DatasetTable, DecoderTable, Matrix
from harness.measure.sources import settings_of, source_of
from harness.runs.environment import source_version


@dataclass(frozen=True)
class _Variant:
    """A decoder with its options, before it meets the grid."""

    name: str
    label: str
    taus: tuple[float | None, ...]
    given: str
    options: str
    code_version: str


def expand(
    matrix: Matrix, data_root: str | None = None, references: Mapping[str, str | None] | None = None
) -> list[Cell]:
    """All cells of a matrix that its filters leave, each once, those to be skipped among them.

    Every decoder is built once with every option, so nothing is measured before everything is known to be sound. Raises
    HarnessError: an unknown decoder, an option it does not take, a checkpoint that is not there and not optional, two
    decoders of one label, or filters that leave nothing.

    Args:
        data_root: where checkpoints are looked for besides, see `checkpoint_path`.
        references: digest of what samples are compared with, by dataset, see `harness.measure.references`; a part of
            what determines a cell's results.
    """
    device = resolve_device(matrix.device)
    require_products(matrix.dtype, device)
    variants = [variant for table in matrix.decoders for variant in _variants(table, matrix)]
    _refuse_shared_labels(variants)
    fits = _Fits()
    cells = {
        cell.cell_id: cell
        for dataset in matrix.datasets
        for cell in _cells(dataset, variants, matrix, device, data_root, (references or {}).get(dataset.name), fits)
        if _wanted(cell, matrix)
    }
    if not cells:
        raise HarnessError(f"the filters of matrix '{matrix.name}' leave no cell")
    return list(cells.values())


def _variants(table: DecoderTable, matrix: Matrix) -> Iterator[_Variant]:
    cls = decoder_class(table.name)
    known = [*inspect.signature(cls).parameters, "label"]
    for option in table.options:
        if option not in known:
            raise unknown(f"option of decoder '{table.name}':", option, known)
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
            label=" ".join(
                [
                    table.label or decoders.name_of(table.name),
                    *(f"{name}={_shown(named[name])}" for name in sorted(named)),
                ]
            ),
            taus=taus,
            given=_json(given, table.name),
            options=_json(options, table.name),
            code_version=source_version(cls),
        )


def _is_grid(decoder: str, name: str, value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if set(value) != {"grid"} or not isinstance(value["grid"], list) or not value["grid"]:
        raise HarnessError(f"option '{name}' of decoder '{decoder}' is a table; a product reads {{ grid = [...] }}")
    return True


def _cells(
    dataset: DatasetTable,
    variants: list[_Variant],
    matrix: Matrix,
    device: str,
    data_root: str | None,
    reference: str | None,
    fits: _Fits,
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
                cell = Cell(
                    **key,
                    options=variant.options,
                    code_version=variant.code_version,
                    cell_id="",
                    cell_key=content_hash(key),
                    group_id=content_hash(shared),
                    label=variant.label,
                    checkpoint=source.name,
                    checkpoint_path=path,
                    data_root=dataset.root,
                    absent=source.absent,
                )
                yield fits.identified(cell, {"reference": reference})


class _Fits:
    """What decoders read that was fitted to a flow or tuned for it; a flow and a decoder are asked of many cells."""

    def __init__(self) -> None:
        self._flow: tuple[tuple[str, str, str], CausalFlow] | None = None
        self._decoders: dict[tuple[str, str, float | None], Decoder] = {}

    def identified(self, cell: Cell, besides: Mapping[str, Any]) -> Cell:
        """The cell with the digest of what its decoder reads, null where that is not made yet, and with its own id."""
        fitted = self._digest(cell)
        determining = {name: getattr(cell, name) for name in ("cell_key", "options", "code_version")}
        return replace(cell, fitted=fitted, cell_id=content_hash(determining | {"fitted": fitted} | dict(besides)))

    def _digest(self, cell: Cell) -> str | None:
        key = (cell.decoder, cell.given, cell.tau)
        if key not in self._decoders:
            self._decoders[key] = cell.build()
        decoder = self._decoders[key]
        if cell.absent is not None or not decoder.reads:
            return None
        place = (cell.checkpoint_digest, cell.device, cell.dtype)
        if self._flow is None or self._flow[0] != place:
            self._flow = None
            self._flow = (place, cell.load())
        flow = self._flow[1]
        return None if decoder.needs(flow, cell.batch_size) else decoder.digest(flow, cell.batch_size)


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


def _json(values: dict[str, Any], owner: str) -> str:
    try:
        return json.dumps(values, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise HarnessError(f"the options of '{owner}' are not plain values: {error}") from error


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
