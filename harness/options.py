"""What a user may set: how a value is read from text, what each kind of number may be, options of decoders and probes,
which are typed fields of dataclasses, and the tables of TOML files.

A range is stated once, here, for matrices, probes and the command line.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from harness.errors import HarnessError, unknown
from harness.files import parse_toml

T = TypeVar("T")

MOST, MOST_BATCH = 10_000_000, 65_536
"""Of anything that is counted, and of samples decoded together: what is larger is a slip that would eat the memory."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Batch = Annotated[int, Field(ge=1, le=MOST_BATCH)]
Processes = Annotated[int, Field(ge=1, le=1024)]
"""Threads, or processes."""
Retries = Annotated[int, Field(ge=0, le=1024)]
"""Retries."""
Real = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Labels = Annotated[list[Annotated[int, Field(ge=-1, lt=2**31)]], Field(min_length=1)]
CalibrationSamples = Annotated[int, Field(ge=16, le=MOST)]
"""Samples to calibrate by."""
TuningSamples = Annotated[int, Field(ge=8, le=MOST)]
"""Samples to tune by."""


def several(value: Any) -> Any:
    """One value as a sequence of one."""
    return value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


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


def parse_decoder(spec: str) -> dict[str, Any]:
    """A decoder and its options from one command-line argument, as a table of a matrix; see `parse_value` for values.

    >>> parse_decoder("sejd initial=input tau=.1 sequential_layers=[1, 2]")
    {'name': 'sejd', 'initial': 'input', 'tau': 0.1, 'sequential_layers': [1, 2]}
    """
    if not spec.strip():
        raise HarnessError("a decoder is given as 'name option=value ...'")
    first, *options = re.split(r"(?<![{,=\s])\s+(?=[^\s=\[\]{}\"']+\s*=)", spec.strip())
    name, *rest = first.split(None, 1)
    table: dict[str, Any] = {"name": name}
    for option in [*rest, *options]:
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or not key:
            raise HarnessError(f"'{option}' in decoder '{spec}' should read option=value")
        if key in table:
            raise HarnessError(f"decoder '{spec}' gives '{key}' twice")
        table[key] = parse_value(value)
    return table


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
    type: str  # as a reader writes it: "number >= 0", "zeros|normal", "list of integer"
    default: Any
    required: bool
    many: bool
    """Whether it takes several values, written with commas between them."""


def options_of(cls: type) -> list[Option]:
    """The options of a class in the order declared, those of the classes it is made from first.

    They are a dataclass's fields, or what another class is constructed with; their meaning is a field's description or
    stands under ``Args:`` in the docstring of the class or of one that it is made from.
    """
    hints = get_type_hints(cls if is_dataclass(cls) else cls.__init__, include_extras=True)  # type: ignore[misc]
    meanings = {name: text for base in reversed(cls.__mro__) for name, text in _arguments(base).items()}
    stated = fields(cls) if is_dataclass(cls) else ()
    made = {entry.name: entry.default_factory() for entry in stated if callable(entry.default_factory)}
    found = []
    for name, parameter in inspect.signature(cls).parameters.items():
        marks = getattr(hints.get(name), "__metadata__", ())
        described = [mark.description for mark in marks if getattr(mark, "description", None)]
        help = " ".join(described) or meanings.get(name, "")
        default = made.get(name, parameter.default)
        required = default is inspect.Parameter.empty
        kind = _written(hints.get(name, Any))
        found.append(Option(name, help, kind, None if required else default, required, isinstance(default, tuple)))
    return found


def about(cls: type) -> str:
    """What the docstring of a class says before its arguments."""
    return re.split(r"\n\s*(?:Args|Raises|Returns|Example):\n", inspect.getdoc(cls) or "")[0].strip()


def _arguments(cls: type) -> dict[str, str]:
    """The text of each argument in a class's own docstring."""
    _, _, below = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", below.partition("\n\n")[0], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_WORDS = {int: "integer", float: "number", str: "text", bool: "true|false", Path: "file", NoneType: "none"}


def _written(hint: Any) -> str:
    """A type as a reader of options writes its values."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        marks = [part for mark in inner[1:] for part in getattr(mark, "metadata", [mark])]
        bounds = [f"{sign} {getattr(mark, key):g}" for mark in marks for key, sign in _BOUNDS.items()
                  if abs(getattr(mark, key, None) or 0) < 2**53 and getattr(mark, key, None) is not None]  # fmt: skip
        return " ".join([_written(inner[0]), *bounds])
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (tuple, list):
        return f"list of {_written(inner[0])}"
    if inner:
        return " or ".join(dict.fromkeys(map(_written, inner)))
    return str(_WORDS.get(hint) or getattr(hint, "__name__", hint))


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


class Table(BaseModel):
    """A TOML table whose unknown keys are refused with the nearest known one."""

    besides: ClassVar[tuple[str, ...]] = ()
    """Keys that a file may have and the table, once read, has not."""
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and cls.model_config.get("extra") == "forbid":
            known = (*cls.model_fields, *cls.besides)
            for key in data:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(key, known, n=1)
                    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
                    raise ValueError(f"has no key {key!r}; {hint}")
        return data


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
            step = step if step.isprintable() else repr(step)
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
