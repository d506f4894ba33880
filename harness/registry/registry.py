"""One registry for everything that a newcomer adds in one file: decoders, flows, datasets.

A name is found, in this order: among the modules of the package that owns the registry (importing one registers what
it defines), among the entry points of installed plugins, and, written as ``package.module:Attribute``, by importing it.
A plugin that fails to load hurts whoever asks for it by name, and nobody else: what its import prints goes to stderr,
and what it changes of the process is put back.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from harness.errors import HarnessError, unknown
from harness.files import file_name
from harness.registry.settings import settings_kept

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to objects of one kind, which errors call so: those of `package`, and of the entry points of `group`."""

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind, self.package, self.group = kind, package, group
        self._objects: dict[str, T] = {}
        self._broken: dict[str, str] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that registers a class or function under `name`."""

        def decorate(obj: Any) -> Any:
            known = self._objects.get(name)
            if known is not None and _origin(known) != _origin(obj):
                raise HarnessError(
                    f"two {self.kind}s are called '{name}': {_origin(known)} and {_origin(obj)}; rename one"
                )
            self._objects[file_name(f"a {self.kind}", name)] = obj
            return obj

        return decorate

    def names(self) -> list[str]:
        """All registered names, sorted; plugins included, unless they are broken."""
        self._discover()
        return sorted(self._objects)

    @property
    def broken(self) -> dict[str, str]:
        """Of every installed plugin that fails to load, its name and why."""
        self._discover()
        return dict(self._broken)

    def items(self) -> Iterator[tuple[str, T]]:
        """Pairs of name and object, sorted by name."""
        return ((name, self._objects[name]) for name in self.names())

    def get(self, name: str) -> T:
        """The object called `name`, or the one at ``package.module:Attribute``.

        For any other, a `HarnessError` names the nearest known name, or says why a plugin is broken.
        """
        if ":" in name:
            return self._import(name)
        self._discover()
        if name not in self._objects:
            if name in self._broken:
                raise HarnessError(f"the installed {self.kind} '{name}' is broken: {self._broken[name]}")
            raise unknown(self.kind, name, self._objects)
        return self._objects[name]

    def name_of(self, given: str) -> str:
        """What ``package.module:Attribute`` is registered as, or the attribute where it is not; any other as given."""
        if ":" not in given:
            return given
        found = self._import(given)
        return next((name for name, known in self._objects.items() if known is found), given.rpartition(":")[2])

    def _import(self, path: str) -> T:
        module_name, _, attribute = path.partition(":")
        if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
            raise HarnessError(f"{path!r} is no {self.kind}; one of your own is given as package.module:Class")
        try:
            module = load_foreign(f"'{path}'", lambda: importlib.import_module(module_name))
        except BrokenCode as error:
            raise HarnessError(f"cannot import {self.kind} '{path}': {error}") from error
        try:
            found = getattr(module, attribute)
        except AttributeError as error:
            raise HarnessError(f"module '{module_name}' has no {self.kind} '{attribute}'") from error
        if not callable(found):
            raise HarnessError(f"'{path}' is no {self.kind}: neither a class nor a function")
        return found

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # a module that asks for names while it is imported gets those known so far
        try:
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                path = f"{self.package}.{module.name}"
                self._try(module.name, path, partial(importlib.import_module, path))
            for entry in entry_points(group=self.group):
                self._try(entry.name, entry.value, partial(self._take, entry))
        except BaseException:
            self._discovered = False
            raise

    def _take(self, entry: EntryPoint) -> None:
        self.register(entry.name)(entry.load())

    def _try(self, name: str, path: str, load: Callable[[], object]) -> None:
        try:
            load_foreign(f"the {self.kind} '{name}'", load)
        except BrokenCode as error:
            self._broken[name] = f"'{path}' fails to load: {error}"


class BrokenCode(HarnessError):
    """Foreign code that cannot be imported; the message is the reason."""


def load_foreign(title: str, load: Callable[[], T]) -> T:
    """What importing foreign code gives; a `BrokenCode` for whatever it raises, an exit included.

    What it prints goes to stderr, and what it changes of the process is put back and told there.
    """
    try:
        with redirect_stdout(sys.stderr), settings_kept() as changed:
            found = load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kind, reason = type(error).__name__, " ".join(str(error).split())
        plain = reason and isinstance(error, Exception) and not isinstance(error, SyntaxError)
        raise BrokenCode(reason if plain else f"{kind}: {reason}".removesuffix(": ")) from error
    if changed:
        print(f"{title} changes {', '.join(changed)} when it is imported; put back", file=sys.stderr)
    return found


def first_line(obj: object) -> str:
    """The first line of an object's docstring: what a list shows of it."""
    return (inspect.getdoc(obj) or "").partition("\n")[0]


def _origin(obj: object) -> str:
    return f"{getattr(obj, '__module__', '?')}.{getattr(obj, '__qualname__', repr(obj))}"
