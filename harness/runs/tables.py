"""The tables of a run folder: what one is, and those of every run, which `tables.toml` states.

A table is tidy: one row per observation, snake_case, SI units in the column name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from importlib.resources import files
from operator import or_
from typing import Any

import pandas as pd
import pyarrow as pa

from harness.errors import HarnessError
from harness.files import file_name

Rows = list[dict[str, Any]]

TEXT, INTEGER, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_KINDS = {"text": TEXT, "integer": INTEGER, "real": REAL, "flag": FLAG}


@dataclass(frozen=True)
class Table:
    """A table: its columns, and those that identify a row; a run never holds two rows with the same key."""

    name: str
    key: tuple[str, ...]
    columns: Mapping[str, pa.DataType]  # by name: `TEXT`, `INTEGER`, `REAL` or `FLAG`

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema(list(self.columns.items()))

    @property
    def names(self) -> list[str]:
        return list(self.columns)

    def to_arrow(self, rows: Rows) -> pa.Table:
        """Rows as an Arrow table of this schema; absent columns are null.

        Raises HarnessError: a column that the table does not have, or a value of the wrong type.
        """
        if extra := {column for row in rows for column in row} - set(self.columns):
            raise HarnessError(f"table '{self.name}' has no column {', '.join(sorted(extra))}")
        for column in (name for name, kind in self.columns.items() if kind == INTEGER):
            for row in rows:  # Arrow would cut the fraction off without a word
                if isinstance(value := row.get(column), float) and not value.is_integer():
                    raise HarnessError(
                        f"a row of table '{self.name}' does not fit its schema: {column} is {value}, no integer"
                    )
        try:
            return pa.Table.from_pylist([{name: row.get(name) for name in self.columns} for row in rows], self.schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise HarnessError(f"a row of table '{self.name}' does not fit its schema: {error}") from error

    def empty(self) -> pd.DataFrame:
        """A frame without rows, its columns typed."""
        text = [name for name, kind in self.columns.items() if kind == TEXT]
        # Columns of text that Arrow makes empty have no chunk at all, and pandas cannot join such.
        return self.schema.empty_table().to_pandas().assign(**{name: pd.Series([], dtype="str") for name in text})

    def declaration(self) -> dict[str, Any]:
        """This table as a manifest states it."""
        return {"columns": [[name, str(kind)] for name, kind in self.columns.items()], "key": list(self.key)}


def declared(tables: Any) -> dict[str, Table]:
    """The tables that a manifest states beside those of every run. Raises HarnessError: what it states is no table."""
    kinds = {str(kind): kind for kind in (TEXT, INTEGER, REAL, FLAG)}
    try:
        return {
            file_name("a table", name): Table(
                name, tuple(one["key"]), {column: kinds[kind] for column, kind in one["columns"]}
            )
            for name, one in tables.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HarnessError(f"its 'tables' are not declared as this harness does: {error!r}") from error


_STATED = tomllib.loads((files("harness.runs") / "tables.toml").read_text(encoding="utf-8"))


def _kinds(columns: Mapping[str, list[str]]) -> dict[str, pa.DataType]:
    return {name: _KINDS[kind] for name, (kind, *_) in columns.items()}


_SHARED = {name: _kinds(columns) for name, columns in _STATED["shared"].items()}
IDENTITY, DESCRIPTION, FLOW, NETWORK, OUTCOME = (
    _SHARED[name] for name in ("identity", "description", "flow", "network", "outcome")
)
"""Columns that tables share."""

TABLES = {
    name: Table(
        name,
        tuple(stated["key"]),
        reduce(or_, (_SHARED[part] for part in stated["shares"]), {}) | _kinds(stated["columns"]),
    )
    for name, stated in _STATED["tables"].items()
}
"""The tables of every run, by name."""
