"""What a table of a run folder is, and the columns that several of them share.

A table is tidy: one row per observation, snake_case, SI units in the column name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa

from harness.errors import HarnessError
from harness.files import file_name

Rows = list[dict[str, Any]]

TEXT, INTEGER, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

IDENTITY = {
    "cell_id": TEXT,  # content hash of what determines the result, code version included
    "cell_key": TEXT,  # the same without the code version: what two runs are joined on
}

DESCRIPTION = {
    "dataset": TEXT,
    "checkpoint": TEXT,  # name or file name
    "decoder": TEXT,  # registered name
    "label": TEXT,  # what tables and figures call this decoder with these options; unique within a run
    "tau": REAL,  # null for a decoder that takes none
    "options": TEXT,  # JSON, sorted keys, tau left out
    "guidance": TEXT,  # JSON, or null
    "denoise": REAL,  # noise that the denoising step after decoding takes out, in image units; null for no such step
    "batch_size": INTEGER,
    "seed": INTEGER,
    "num_tokens": INTEGER,  # L
    "num_layers": INTEGER,  # K
    "device": TEXT,  # cpu or cuda
    "dtype": TEXT,
    "threads": INTEGER,
}

OUTCOME = {
    "status": TEXT,  # one of STATUSES
    "error": TEXT,  # a sentence, or null
}

FLOW = {
    "dataset": TEXT,
    "checkpoint": TEXT,
    "num_tokens": INTEGER,
    "num_layers": INTEGER,
}

NETWORK = {
    "token_dim": INTEGER,
    "channels": INTEGER,
    "transformer_layers": INTEGER,  # per flow layer
    "classes": INTEGER,
    "device": TEXT,
    "dtype": TEXT,
    "threads": INTEGER,
}

ATTEMPTS = {
    "attempts": INTEGER,  # times that the job was begun; more than 1 where its worker or machine was lost
}

STATUSES = ("ok", "failed", "out-of-memory", "non-finite", "skipped")
"""How a measurement ended. Only rows that are "ok" carry figures to be compared."""


@dataclass(frozen=True)
class Table:
    """A table: its columns, and those that identify a row; a run never holds two rows with the same key.

    Args:
        name: of the table.
        key: columns.
        columns: name to type, one of `TEXT`, `INTEGER`, `REAL` and `FLAG`.
    """

    name: str
    key: tuple[str, ...]
    columns: Mapping[str, pa.DataType]

    @cached_property
    def schema(self) -> pa.Schema:
        """As Arrow's."""
        return pa.schema(list(self.columns.items()))

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return list(self.columns)

    def to_arrow(self, rows: Rows) -> pa.Table:
        """Rows as an Arrow table of this schema; absent columns are null.

        Raises:
            HarnessError: a column that the table does not have, or a value of the wrong type.
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
    """The tables that a manifest states beside those of every run.

    Raises:
        HarnessError: what it states is no table.
    """
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
