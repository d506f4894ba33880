"""What a probe is: an experiment on a flow, in one file of this package, that `harness probe NAME CHECKPOINT` runs.

A probe is a keyword-only dataclass whose fields are its options; the command line, plan files and every cell's identity
read them from there. Its first docstring line is what ``harness list probes`` and ``--help`` show.

    @probes.register("nearest")
    @dataclass(kw_only=True)
    class Nearest(Probe):
        \"\"\"How large the first token of every layer is.\"\"\"

        samples: Annotated[int, Field(ge=1, description="Latents that are decoded.")] = 16

        def units(self, subject: Subject) -> list[Unit]:
            return [Unit(f"layer {n}", {"layer": n}, ("nearest",)) for n in range(1, subject.flow.num_layers + 1)]

        def measure(self, subject: Subject, units: Sequence[Unit]) -> Iterator[dict[str, Rows]]:
            for unit in units:
                yield {"nearest": [unit.key | {"size": ...}]}

The tables it writes are declared in `runs.tables`, with ``_IDENTITY`` first and their keys in ``KEYS``. Whatever
columns of the table `probes` they have besides (``checkpoint``, ``num_tokens``, ...) are filled in for them. Rows are
stored unit by unit: `units` says what there is to be measured, the runner leaves out those whose rows are stored, and
`measure` yields the rows of each of the rest, in order, so that what they share lives in its local variables. A probe
outside this package registers through the entry-point group ``harness.probes``, or is named ``package.module:Class``.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from harness.errors import HarnessError, unknown
from harness.flows.latents import cycling_labels, indexed_latents
from harness.flows.protocols import CausalFlow
from harness.options import sentence
from harness.registry import Registry

Rows = list[dict[str, Any]]

probes: Registry[type[Probe]] = Registry("probe", package="harness.measure.probes", group="harness.probes")
"""Every probe by name; see `build_probe`."""


@dataclass(frozen=True)
class Unit:
    """The least piece of a probe's work: its rows are stored together, and a killed probe loses at most one.

    Args:
        title: what progress shows.
        key: columns whose values tell this unit's rows from those of the others, in every table it writes.
        tables: the tables that it writes; it is done when each of them has a row with its key.
        cost: relative to the other units, for the estimate of the remaining time alone.
    """

    title: str
    key: dict[str, Any]
    tables: tuple[str, ...]
    cost: float = 1.0


@dataclass(frozen=True)
class Subject:
    """What a probe is run on.

    Args:
        flow: loaded, in the probe's dtype.
        path: the checkpoint's file.
        checkpoint: its name, or its file's.
        dataset: name of the real images that it was trained on.
        folder: the run folder, for images; tables are written by the runner.
        device: ``"cpu"`` or ``"cuda"``.
        data_root: folder of the real images, or None for the default.
        seed: of the latents.
        note: tells the user a sentence.
    """

    flow: CausalFlow
    path: Path
    checkpoint: str
    dataset: str
    folder: Path
    device: str = "cpu"
    data_root: str | None = None
    seed: int = 0
    note: Any = field(default=print)

    def samples(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The latents (n, L, D) with these indices and their labels (n,): the same ones as a run's quality pass draws.

        Labels take turns by index; they are None for a flow without classes.
        """
        labels = cycling_labels(self.flow, indices)
        latents = indexed_latents(self.flow, self.seed, indices)
        return latents, None if labels is None else labels.to(latents.device)


@dataclass(kw_only=True)
class Probe(ABC):
    """An experiment on a flow. Subclasses are keyword-only dataclasses; see the module's docstring.

    Args:
        seed: of the latents.
    """

    dtype: ClassVar[str] = "float32"
    """Of the flow's parameters and the latents."""

    seed: Annotated[int, Field(ge=0, lt=2**63, description="Of the latents.")] = 0

    @abstractmethod
    def units(self, subject: Subject) -> list[Unit]:
        """What there is to be measured, in order.

        Raises:
            HarnessError: options that do not fit the flow.
        """

    @abstractmethod
    def measure(self, subject: Subject, units: Sequence[Unit]) -> Iterator[dict[str, Rows]]:
        """For each unit in order its rows by table, without the columns that identify the cell and describe it."""

    def options(self) -> dict[str, Any]:
        """The options this probe was built with, as plain values."""
        return asdict(self)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Option:
    """One option of a probe, as a command line shows it."""

    name: str
    help: str
    default: Any
    many: bool
    """Whether it takes several values, written with commas between them."""


def options_of(probe: type[Probe]) -> list[Option]:
    """The options of a probe in the order declared, those of every probe last."""
    hints = get_type_hints(probe, include_extras=True)
    found = []
    for entry in fields(probe):
        described = [mark.description for mark in getattr(hints[entry.name], "__metadata__", ()) if mark.description]
        default = entry.default_factory() if callable(entry.default_factory) else entry.default
        found.append(Option(entry.name, " ".join(described), default, isinstance(default, tuple)))
    return sorted(found, key=lambda option: option.name in {entry.name for entry in fields(Probe)})


def build_probe(name: str, **options: Any) -> Probe:
    """Build a probe by its registered name, or by ``package.module:Class``.

    Args:
        name: of the probe.
        options: values, or text as the command line gives it: a text of several values has commas between them.

    Raises:
        HarnessError: no such probe, an option that it does not have, or a value of the wrong kind or out of range.

    Example:
        >>> build_probe("redundancy", o="0,1,2", samples=8).o
        (0, 1, 2)
    """
    cls = probes.get(name)
    if not (inspect.isclass(cls) and issubclass(cls, Probe)):
        raise HarnessError(f"'{name}' is no probe: a probe is a subclass of harness.measure.probes.probe:Probe")
    known = {option.name: option for option in options_of(cls)}
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of probe '{name}':", option, known)
        if known[option].many and isinstance(value, str):
            options[option] = [part.strip() for part in value.split(",")]
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as error:
        raise HarnessError(f"probe '{name}': {sentence(error)}") from error
