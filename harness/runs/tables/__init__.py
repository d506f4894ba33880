"""The schema of every table, and the only place it is written down: `passes` and `probes`.

A table is tidy: one row per observation, snake_case, SI units in the column name. `cells` describes what was measured;
the other tables join it on `cell_id`, or on `group_id` where they tell of a whole group. Two runs are joined on
`cell_key`, which leaves the code version out.
"""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from harness.errors import HarnessError
from harness.runs.tables import passes, probes
from harness.runs.tables.columns import INTEGER, STATUSES, TEXT

__all__ = ["KEYS", "STATUSES", "TABLES", "empty", "to_arrow"]

TABLES: dict[str, pa.Schema] = {
    name: pa.schema(list(columns.items())) for name, columns in (passes.COLUMNS | probes.COLUMNS).items()
}
"""Table name to schema."""

KEYS: dict[str, list[str]] = passes.KEYS | probes.KEYS
"""The columns that identify a row of each table: a run never holds two rows with the same key."""


def to_arrow(table: str, rows: list[dict[str, object]]) -> pa.Table:
    """Rows as an Arrow table of the table's schema; absent columns are null.

    Raises:
        HarnessError: a column that the table does not have, or a value of the wrong type.
    """
    schema = TABLES[table]
    if extra := {column for row in rows for column in row} - set(schema.names):
        raise HarnessError(f"table '{table}' has no column {', '.join(sorted(extra))}")
    for name in (name for name, kind in zip(schema.names, schema.types, strict=True) if kind == INTEGER):
        for row in rows:  # Arrow would cut the fraction off without a word
            if isinstance(value := row.get(name), float) and not value.is_integer():
                raise HarnessError(f"a row of table '{table}' does not fit its schema: {name} is {value}, no integer")
    try:
        return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise HarnessError(f"a row of table '{table}' does not fit its schema: {error}") from error


def empty(table: str) -> pd.DataFrame:
    """A table without rows, its columns typed."""
    schema = TABLES[table]
    text = [name for name, kind in zip(schema.names, schema.types, strict=True) if kind == TEXT]
    # Columns of text that Arrow makes empty have no chunk at all, and pandas cannot join such.
    return schema.empty_table().to_pandas().assign(**{name: pd.Series([], dtype="str") for name in text})
