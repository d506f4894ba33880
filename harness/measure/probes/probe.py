"""What a probe is: an experiment on a flow, in one file of this package, that `harness probe NAME CHECKPOINT` runs.

A probe is a keyword-only dataclass whose fields are its options; the command line, plan files and every cell's identity
read them from there. Its first docstring line is what ``harness list probes`` and ``--help`` show. It declares the
tables that it writes, says what units of work there are, and measures one of them at a time, in another process: what
several units share is made once, through `Bench.keep`. CONTRIBUTING.md shows one. A probe outside this package
registers through the entry-point group ``harness.probes``, or is named ``package.module:Class``.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from harness.decoders import Decoder
from harness.errors import HarnessError
from harness.flows import CausalFlow
from harness.measure.cells import Subject
from harness.measure.units import Bench, Rows, Unit
from harness.metrics.timing import timed
from harness.options import Seed, build, options_of, split_values
from harness.registry import Registry
from harness.runs.tables import FLOW, IDENTITY, Table

probes: Registry[type[Probe]] = Registry("probe", package="harness.measure.probes", group="harness.probes")
"""Every probe by name; see `build_probe`."""


def probe_table(name: str, key: tuple[str, ...], columns: dict[str, Any], described: dict[str, Any] = FLOW) -> Table:
    """A table of a probe: identity and description of what was measured come first, and are filled in by themselves.

    Args:
        key: columns that identify a row among those of one run of the probe.
        described: columns of the table `probes` that are repeated here.
    """
    return Table(name, ("cell_id", *key), {**IDENTITY, **described, **columns})


@dataclass(kw_only=True)
class Probe(ABC):
    """An experiment on a flow. Subclasses are keyword-only dataclasses; see the module's docstring."""

    tables: ClassVar[tuple[Table, ...]]
    """That it writes."""
    exclusive: ClassVar[bool] = False
    """Whether it times something, so that nothing else may run on the device meanwhile."""
    dtype: ClassVar[str] = "float32"
    """Of the flow's parameters and the latents."""

    seed: Annotated[Seed, Field(description="Of the latents.")] = 0

    def reads(self) -> list[tuple[Decoder, int]]:
        """Decoders, each with a batch size, whose fits are made before anything is measured where they are missing."""
        return []

    @abstractmethod
    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        """What there is to be measured, in order: units of this one subject, each with its key and tables.

        Raises:
            HarnessError: options that do not fit the flow.
        """

    @abstractmethod
    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        """The rows of a unit by table, without the columns that identify and describe what was measured."""

    def together(self, unit: Unit) -> Hashable:
        """Units with equal keys are measured by one process: all of them, unless they share nothing worth keeping."""
        return None

    def options(self) -> dict[str, Any]:
        """The options this probe was built with, as plain values."""
        return asdict(self)


def alternating(calls: Mapping[str, Callable[[], Any]], rounds: int, device: str) -> Iterator[dict[str, float]]:
    """Seconds of every call, round by round, one after the other in an order that turns round; one round is warm-up."""
    for number in range(-1, rounds):
        seconds = {name: timed(calls[name], device)[0] for name in list(calls)[:: -1 if number % 2 else 1]}
        if number >= 0:
            yield seconds


def build_probe(name: str, **options: Any) -> Probe:
    """Build a probe by its registered name, or by ``package.module:Class``.

    Args:
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
    many = {option.name for option in options_of(cls) if option.many}
    split = {option: split_values(value) for option, value in options.items()
             if option in many and isinstance(value, str)}  # fmt: skip
    return build(cls, "probe", name, options | split)
