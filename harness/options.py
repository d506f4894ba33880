"""Options of decoders and probes: the typed fields of keyword-only dataclasses, checked when they are built."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from harness.errors import HarnessError, unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option, as a command line shows it."""

    name: str
    help: str
    default: Any
    many: bool
    """Whether it takes several values, written with commas between them."""


def options_of(cls: type) -> list[Option]:
    """The options of a class in the order declared, those of the classes it is made from first."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for entry in fields(cls):
        marks = getattr(hints[entry.name], "__metadata__", ())
        described = [mark.description for mark in marks if getattr(mark, "description", None)]
        default = entry.default_factory() if callable(entry.default_factory) else entry.default
        found.append(Option(entry.name, " ".join(described), default, isinstance(default, tuple)))
    return found


def build(cls: type[T], kind: str, name: str, options: Mapping[str, Any]) -> T:
    """Build an instance from its options.

    Args:
        kind: the word for what it is, such as ``"decoder"``.
    """
    known = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise unknown(f"option of {kind} '{name}':", option, known)
    try:
        return _adapter(cls).validate_python(dict(options))  # type: ignore[arg-type]
    except ValidationError as error:
        for mistake in error.errors():
            if mistake["type"] == "literal_error" and isinstance(mistake["input"], str):
                choices = re.findall(r"'([^']*)'", mistake["ctx"]["expected"])
                raise unknown(str(mistake["loc"][0]), mistake["input"], choices) from error
        raise HarnessError(f"{kind} '{name}': {sentence(error)}") from error
    except HarnessError:
        raise
    except Exception as error:  # of a plugin's own __post_init__
        raise HarnessError(f"{kind} '{name}' cannot be built: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=256)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def reason(error: Exception) -> str:
    """What is wrong with plain values that somebody else wrote, in a few words: from the error of reading."""
    if isinstance(error, ValidationError):
        return sentence(error) if error.errors()[0]["loc"] else "it is no JSON of the kind expected"
    if isinstance(error, KeyError):
        return f"'{error.args[0]}' is missing"
    return " ".join(str(error).split()) if isinstance(error, ValueError) else "a value is of another kind than expected"


def sentence(error: ValidationError, whole: str = "the matrix") -> str:
    """The first mistake, as the path of the key and what is wrong there; `whole` is what has no path."""
    first = error.errors()[0]
    where = ""
    for step in first["loc"]:
        if isinstance(step, int):
            where += f"[{step}]"
        elif not step.endswith("]") and step not in ("str", "int", "float"):  # pydantic's names of union members
            where += f".{step}" if where else step
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"'{where}' is missing"
    if first["type"] == "value_error":
        return f"{f'[{where}]' if where else whole} {message}"
    value = first["input"]
    got = (
        "" if isinstance(value, dict | list) or (isinstance(value, float) and math.isnan(value)) else f", not {value!r}"
    )
    return f"'{where}' {message.removeprefix('Input ')[0].lower()}{message.removeprefix('Input ')[1:]}{got}"
