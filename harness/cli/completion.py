"""Completion in the shell, by click's own mechanism: the names of what a command takes."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name

import click
from click.shell_completion import CompletionItem

_NAMES = {
    "baselines": "harness.runs.baselines:baselines",
    "datasets": "harness.datasets:datasets.names",
    "decoders": "harness.decoders:decoders.names",
    "flows": "harness.flows.checkpoints:shipped",
    "kinds": "harness.cli.catalog:KINDS.keys",
    "matrices": "harness.measure.matrix:matrices",
    "published": "harness.flows.published:published",
    "studies": "harness.measure.studies:studies",
    "training": "harness.training.config:shipped_configs",
}
"""Where the names of each kind are asked for; no module is loaded before Tab asks for its names."""

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names(*kinds: str, besides: tuple[str, ...] = (), files: bool = False) -> Complete:
    """A parameter's ``shell_complete``: the names of some kinds, some words besides, and files where it takes them."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        known = sorted({name for kind in kinds for name in resolve_name(_NAMES[kind])()} | set(besides))
        # Files come first: shells take this item as "where nothing else fits".
        items = [CompletionItem(incomplete, type="file")] if files else []
        return items + [CompletionItem(name) for name in known if name.startswith(incomplete)]

    return complete


def names_of_kind(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the kind that was given before."""
    from harness.cli.catalog import catalog

    entries = [entry for found in catalog(ctx.params.get("kind")).values() for entry in found]
    return [CompletionItem(entry.name, help=entry.line) for entry in entries if entry.name.startswith(incomplete)]
