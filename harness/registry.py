"""One registry for everything that a newcomer adds in one file: decoders, flows, datasets.

A name is found, in this order: among the modules of the package that owns the registry (importing one registers what
it defines), among the entry points of installed plugins, and, written as ``package.module:Attribute``, by importing it.
A plugin that fails to load hurts whoever asks for it by name, and nobody else.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from harness.errors import HarnessError, unknown
from harness.files import file_name

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
            found = getattr(importlib.import_module(module_name), attribute)
        except ImportError as error:
            raise HarnessError(f"cannot import {self.kind} '{path}': {error}") from error
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
                importlib.import_module(f"{self.package}.{module.name}")
            for entry in entry_points(group=self.group):
                try:
                    self.register(entry.name)(entry.load())
                except Exception as error:  # whatever its modules raise when they are imported
                    self._broken[entry.name] = f"'{entry.value}' fails to load: {str(error) or type(error).__name__}"
        except BaseException:
            self._discovered = False
            raise


def first_line(obj: object) -> str:
    """The first line of an object's docstring: what a list shows of it."""
    return (inspect.getdoc(obj) or "").partition("\n")[0]


def _origin(obj: object) -> str:
    return f"{getattr(obj, '__module__', '?')}.{getattr(obj, '__qualname__', repr(obj))}"
