"""What there is: decoders, flows, datasets, probes and more, each with one line and where it comes from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from inspect import isclass
from pathlib import Path
from textwrap import fill
from typing import Any

from analysis.studies.stored import took
from analysis.text import duration
from harness.datasets import datasets
from harness.decoders import decoders
from harness.errors import HarnessError, unknown
from harness.flows.checkpoints import ASSETS, load_flow, read_state, shipped
from harness.flows.protocols import flows
from harness.flows.published import find_checkpoint, published
from harness.measure.matrix import SHIPPED, installed, load_matrix, matrices, matrix_path
from harness.measure.probes.probe import probes
from harness.measure.studies import load_plan, studies
from harness.options import about, options_of
from harness.registry import Registry, first_line
from harness.runs.baselines import RESULTS, baselines, open_run
from harness.runs.store import Run, read_run

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
    return {name: list(entries()) for name, (entries, _) in KINDS.items() if kind in (None, name)}


def details(kind: str, name: str) -> dict[str, Any]:
    """One entry of a kind: its name, what it is, facts, and under ``options`` what can be set.

    Raises HarnessError: no such kind or name.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    return {"name": name, **KINDS[kind][1](name)}


def print_catalog(kind: str | None = None, name: str | None = None, as_json: bool = False) -> None:
    """Print the catalog, aligned, one line an entry; or one entry of it, with its options; or either as JSON."""
    if kind is not None and name is not None:
        found = details(kind, name)
        print(json.dumps(found, indent=2, default=str)) if as_json else _print_details(found)
    elif as_json:
        print(json.dumps({name: list(map(vars, entries)) for name, entries in catalog(kind).items()}, indent=2))
    else:
        _print_entries(catalog(kind))


def _print_entries(found: dict[str, list[Entry]]) -> None:
    for name, entries in found.items():
        print(f"{name}:")
        width = max((len(entry.name) for entry in entries), default=0)
        for entry in entries:
            print(f"  {entry.name:<{width}}  {entry.line}  [{entry.origin}]")
        if not entries:
            print("  none")


def _print_details(found: dict[str, Any]) -> None:
    options = found.pop("options", [])
    print(f"{found.pop('name')}: {found.pop('about')}")
    for key, value in found.items():
        print(f"\n{key}: {json.dumps(value, default=str) if isinstance(value, dict) else value}", end="")
    print()
    for option in options:
        default = "none" if option["default"] is None else json.dumps(option["default"], default=str)
        required = "required" if option["required"] else f"default: {default}"
        print(f"\n  {option['name']}  ({option['type']}; {required})")
        if option["help"]:
            print(fill(option["help"].replace("``", "`"), 96, initial_indent="      ", subsequent_indent="      "))


def _registered_details(registry: Registry[Any], name: str) -> dict[str, Any]:
    thing = registry.get(name)
    if not isclass(thing):
        raise HarnessError(f"'{name}' is no {registry.kind}: it is no class")
    tables = {table.name: table.names for table in vars(thing).get("tables", ())}
    facts: dict[str, Any] = {"about": about(thing), "from": f"{thing.__module__}:{thing.__qualname__}"}
    return facts | ({"tables": tables} if tables else {}) | {"options": [vars(option) for option in options_of(thing)]}


def _flow_details(name: str) -> dict[str, Any]:
    line = next((entry.line for entry in _flows() if entry.name == name), f"checkpoint '{name}'")
    if name in published() and find_checkpoint(name) is None:
        return {"about": line}
    flow = load_flow(name)
    facts = ("num_layers", "num_tokens", "token_dim", "image_shape", "num_classes")
    return {"about": line, "file": str(flow.source)} | {fact: getattr(flow, fact) for fact in facts}


def _matrix_details(name: str) -> dict[str, Any]:
    path, matrix = matrix_path(name), load_matrix(name)
    return {
        "about": matrix.description,
        "file": str(path),
        "profiles": list(tomllib.loads(path.read_text(encoding="utf-8")).get("profiles", {})),
    } | matrix.model_dump(include={"datasets", "decoders", "grid", "timing", "quality"}, exclude_unset=True)


def _baseline_details(name: str) -> dict[str, Any]:
    run = open_run(name)
    cells = run.table("cells")
    return {"about": _baseline_line(run), "folder": str(run.path), "matrix": run.matrix} | {
        column: sorted(cells[column].unique().tolist()) for column in ("dataset", "label", "batch_size")
    }


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
        where = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        yield Entry(name, _baseline_line(read_run(path)), str(where))


def _studies() -> Iterator[Entry]:
    for name in studies():
        found = took(name, [root / "studies" for root in RESULTS])
        how_long = f"{duration(found[1])}, profile {found[0]}" if found else "not timed yet"
        yield Entry(name, f"{load_plan(name).title}: {how_long}", OWN)


def _study_details(name: str) -> dict[str, Any]:
    plan = load_plan(name)
    return {"about": plan.title, "folder": str(plan.folder), "reads": plan.reads} | {
        "runs": [f"matrix {run.name}" for run in plan.run] + [f"probe {run.probe} on {run.flow}" for run in plan.probe]
    }


def _baseline_line(run: Run) -> str:
    environment, matrix = run.environment, run.matrix
    machine = environment.get("gpu") or environment.get("cpu")
    return f"matrix {matrix.get('name')} on {machine}, {environment.get('threads')} threads"


KINDS: dict[str, tuple[Callable[[], Iterator[Entry]], Callable[[str], dict[str, Any]]]] = {
    "decoders": (lambda: _registered(decoders), lambda name: _registered_details(decoders, name)),
    "flows": (_flows, _flow_details),
    "datasets": (lambda: _registered(datasets), lambda name: _registered_details(datasets, name)),
    "probes": (lambda: _registered(probes), lambda name: _registered_details(probes, name)),
    "matrices": (_matrices, _matrix_details),
    "baselines": (_baselines, _baseline_details),
    "studies": (_studies, _study_details),
}
"""How the entries of each kind are found, and what is told of one of them."""


def _origin(thing: object) -> str:
    top = str(getattr(thing, "__module__", "?")).partition(".")[0]
    return OWN if top == OWN else _distribution(top)


def _distribution(package: str) -> str:
    """The installed distribution that an importable package belongs to, or the package where none does."""
    return ", ".join(_distributions().get(package, [package]))


@cache
def _distributions() -> dict[str, list[str]]:
    return {top: sorted(set(names)) for top, names in packages_distributions().items()}
