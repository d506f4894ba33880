"""What there is: decoders, flows, datasets, probes and more, each with one line and where it comes from."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from harness.datasets import datasets
from harness.decoders import decoders
from harness.errors import unknown
from harness.flows.checkpoints import ASSETS, read_state, shipped
from harness.flows.protocols import flows
from harness.flows.published import find_checkpoint, published
from harness.measure.matrix import SHIPPED, installed, matrices
from harness.measure.probes.probe import probes
from harness.registry import Registry, first_line
from harness.runs.baselines import baselines
from harness.runs.store import read_run

OWN = "harness"


@dataclass(frozen=True)
class Entry:
    """One thing that a command takes by name."""

    name: str
    line: str  # what it is
    origin: str  # "harness", the distribution that brought it, or the folder it lies in


def catalog(kind: str | None = None) -> dict[str, list[Entry]]:
    """Everything there is, by kind: one of `KINDS` alone, or all; another is a `HarnessError`."""
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    return {name: list(entries()) for name, entries in KINDS.items() if kind in (None, name)}


def print_catalog(kind: str | None = None) -> None:
    """Print the catalog, aligned, one line an entry."""
    for name, entries in catalog(kind).items():
        print(f"{name}:")
        width = max((len(entry.name) for entry in entries), default=0)
        for entry in entries:
            print(f"  {entry.name:<{width}}  {entry.line}  [{entry.origin}]")
        if not entries:
            print("  none")


def _registered(registry: Registry[Any]) -> Iterator[Entry]:
    for name, thing in registry.items():
        yield Entry(name, first_line(thing), _origin(thing))
    for name, reason in registry.broken.items():
        yield Entry(name, f"broken: {' '.join(reason.split())}", "plugin")


def _flows() -> Iterator[Entry]:
    for name in shipped():
        yield Entry(name, _about(name), OWN)
    for known in published().values():
        here = find_checkpoint(known.name)
        where = "on this machine" if here else f"not on this machine; from {known.url}"
        line = f"Published TarFlow {known.shape} of {known.dataset}, {known.image_size}x{known.image_size}, sigma"
        yield Entry(known.name, f"{line} {known.sigma:g}, {known.classes} classes: {where}", known.publisher)
    for entry in _registered(flows):
        yield Entry(f"({entry.name})", f"family: {entry.line}", entry.origin)


def _about(flow: str) -> str:
    """What a shipped flow is: its model card up to the sequence's length, or the training that it is a snapshot of."""
    card = ASSETS / f"{flow}.md"
    if card.is_file():
        lines = card.read_text(encoding="utf-8").splitlines()
        about = next((line for line in lines if line and not line.startswith(("#", "!", "|", "-"))), "")
        return about.partition(". ")[0].partition(" tokens of")[0]
    _, metadata = read_state(ASSETS / f"{flow}.safetensors")
    return f"Snapshot of '{metadata.get('command', '?')}' after {metadata.get('step', '?')} steps"


def _matrices() -> Iterator[Entry]:
    for name, path in sorted(matrices().items()):
        about = tomllib.loads(path.read_text(encoding="utf-8")).get("description", "")
        yield Entry(name, about, OWN if path.parent == SHIPPED else _distribution(path.parent.name))
    for name, reason in installed().items():
        if isinstance(reason, str):
            yield Entry(name, f"broken: {reason}", "plugin")


def _baselines() -> Iterator[Entry]:
    for name, path in sorted(baselines().items()):
        facts = read_run(path).manifest
        environment, matrix = facts.get("environment", {}), facts.get("matrix", {})
        machine = environment.get("gpu") or environment.get("cpu")
        threads = environment.get("threads")
        where = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        yield Entry(name, f"matrix {matrix.get('name')} on {machine}, {threads} threads", str(where))


KINDS: dict[str, Callable[[], Iterator[Entry]]] = {
    "decoders": lambda: _registered(decoders),
    "flows": _flows,
    "datasets": lambda: _registered(datasets),
    "probes": lambda: _registered(probes),
    "matrices": _matrices,
    "baselines": _baselines,
}
"""How the entries of each kind are found."""


def _origin(thing: object) -> str:
    top = str(getattr(thing, "__module__", "?")).partition(".")[0]
    return OWN if top == OWN else _distribution(top)


def _distribution(package: str) -> str:
    """The installed distribution that an importable package belongs to, or the package where none does."""
    return ", ".join(_distributions().get(package, [package]))


@cache
def _distributions() -> dict[str, list[str]]:
    return {top: sorted(set(names)) for top, names in packages_distributions().items()}
