"""Options: how a value is read from text, what each kind may be, and those that decoders and probes declare as fields.

A range is stated once, here, for matrices, probes and the command line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from harness.errors import HarnessError, unknown
from harness.files import parse_toml

T = TypeVar("T")

MOST, MOST_BATCH = 10_000_000, 65_536
"""Of anything that is counted, and of samples decoded together: what is larger is a slip that would eat the memory."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Batch = Annotated[int, Field(ge=1, le=MOST_BATCH)]
Few = Annotated[int, Field(ge=1, le=1024)]
"""Threads, or processes."""
Again = Annotated[int, Field(ge=0, le=1024)]
"""Retries."""
Real = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Labels = Annotated[list[Annotated[int, Field(ge=-1, lt=2**31)]], Field(min_length=1)]
Calibrated = Annotated[int, Field(ge=16, le=MOST)]
"""Samples to calibrate by."""
Tuned = Annotated[int, Field(ge=8, le=MOST)]
"""Samples to tune by."""


def parse_value(text: str) -> Any:
    """A value as TOML writes it, numbers also as in ``.5`` and ``5.``; what is none is text.

    >>> parse_value(".5"), parse_value("[1, 2]"), parse_value("input"), parse_value("1 # 2")
    (0.5, [1, 2], 'input', '1 # 2')
    """
    dotted = re.sub(r"(?<![\w.])\.(?=\d)", "0.", re.sub(r"(?<=\d)\.(?![\w.])", ".0", text))
    for candidate in (text, dotted):
        try:
            read = parse_toml(f"value = {{ it = {candidate} }}")
        except ValueError:
            continue
        if list(read) == ["value"] and list(read["value"]) == ["it"]:
            return read["value"]["it"]
    return text


def split_values(text: str) -> list[str]:
    """The parts between commas, but for those in brackets, which may be left away around the whole.

    >>> split_values("0, 1"), split_values("[0,1]"), split_values("sejd sequential_layers=[1,2],ujd")
    (['0', '1'], ['0', '1'], ['sejd sequential_layers=[1,2]', 'ujd'])
    """
    inner = text.strip()
    inner = inner[1:-1] if re.fullmatch(r"\[[^\[\]]*\]", inner) else inner
    return [part.strip() for part in re.split(r",(?![^\[]*\])", inner)] if inner else []


def read_value(option: str, kind: Any, text: str) -> Any:
    """The value of an option of the command line; a `HarnessError` names the option and what it may be.

    >>> read_value("--seed", Seed, "7"), read_value("--labels", Labels, "0,1")
    (7, [0, 1])
    """
    adapter = _adapter(kind)
    value = [parse_value(part) for part in split_values(text)] if kind is Labels else parse_value(text)
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        raise HarnessError(sentence(error, root=(option,))) from error


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


def sentence(error: ValidationError, whole: str = "the matrix", root: tuple[str, ...] = ()) -> str:
    """The first mistake, as the path of the key, below `root`, and what is wrong; `whole` is what has no path."""
    first = error.errors()[0]
    where = ""
    for step in (*root, *first["loc"]):
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
    unsaid = isinstance(value, dict | list) or (isinstance(value, float) and math.isnan(value))
    got = "" if unsaid else f", not {value!r:.100}"
    return f"'{where}' {message.removeprefix('Input ')[0].lower()}{message.removeprefix('Input ')[1:]}{got}"
