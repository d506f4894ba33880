"""The schema of every table, and the only place it is written down.

A table is tidy: one row per observation, snake_case, SI units in the column name. `cells` describes what was measured;
the other tables join it on `cell_id`. Two runs are joined on `cell_key`, which leaves the code version out.
"""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from harness.errors import HarnessError

TEXT, INTEGER, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

_IDENTITY = {
    "cell_id": TEXT,  # content hash of what determines the result, code version included
    "cell_key": TEXT,  # the same without the code version: what two runs are joined on
}

_DESCRIPTION = {
    "dataset": TEXT,
    "checkpoint": TEXT,  # name or file name
    "decoder": TEXT,  # registered name
    "label": TEXT,  # what tables and figures call this decoder with these options; unique within a run
    "tau": REAL,  # null for a decoder that takes none
    "options": TEXT,  # JSON, sorted keys, tau left out
    "guidance": TEXT,  # JSON, or null
    "batch_size": INTEGER,
    "seed": INTEGER,
    "num_tokens": INTEGER,  # L
    "num_layers": INTEGER,  # K
    "device": TEXT,  # cpu or cuda
    "dtype": TEXT,
    "threads": INTEGER,
}

_OUTCOME = {
    "status": TEXT,  # one of STATUSES
    "error": TEXT,  # a sentence, or null
}

STATUSES = ("ok", "failed", "out-of-memory", "non-finite", "skipped")
"""How a measurement ended. Only rows that are "ok" carry figures to be compared."""

TABLES: dict[str, pa.Schema] = {
    name: pa.schema(list(columns.items()))
    for name, columns in {
        # One row per cell: what it is. `group_id` names the cells that are timed in paired rounds.
        "cells": {
            **_IDENTITY,
            "group_id": TEXT,
            **_DESCRIPTION,
            "token_dim": INTEGER,
            "checkpoint_digest": TEXT,  # SHA-256
            "code_version": TEXT,
        },
        # One row per cell and round. Every round of a group decodes each of its cells once, in shuffled order, and
        # encodes once; rows of one `session` (one process) and `round` are pairs.
        "timings": {
            **_IDENTITY,
            "group_id": TEXT,
            **_DESCRIPTION,
            "session": TEXT,
            "round": INTEGER,
            "position": INTEGER,  # place in the shuffled order
            "wall_s": REAL,
            "images_per_s": REAL,
            "encode_s": REAL,  # one forward pass of the same batch in the same round
            "forward_ratio": REAL,  # wall_s / encode_s
            **_OUTCOME,
        },
        # One row per cell and layer, from one decode of the cell's own latents, nothing recorded inside it.
        "layers": {
            **_IDENTITY,
            "layer": INTEGER,  # decoding order, 1 is next to the prior
            "block": INTEGER,
            "mode": TEXT,
            "iterations": INTEGER,
            "converged": FLAG,
            "token_evaluations": REAL,  # per sample
            "depth": INTEGER,  # network calls that follow each other
            "wall_s": REAL,
            "final_residual": REAL,  # null where nothing iterates
            "flags": TEXT,  # comma-separated, see LayerTrace
        },
        # One row per cell, layer and network call, from a second decode that is recorded, never timed.
        "residuals": {
            **_IDENTITY,
            "layer": INTEGER,
            "iteration": INTEGER,  # from 1
            "residual": REAL,  # of the stopping rule; null where nothing iterates
            "error_inf": REAL,  # to the exact output of the layer for the same inputs: max over batch, tokens, channels
            "error_rms": REAL,
            "error_rms_p10": REAL,  # over samples
            "error_rms_p50": REAL,
            "error_rms_p90": REAL,
        },
        # One row per cell.
        "quality": {
            **_IDENTITY,
            "fid": REAL,
            "fid_features": TEXT,  # names the network; never compared across
            "kid": REAL,
            "kid_std": REAL,
            "num_samples": INTEGER,
            "num_reference": INTEGER,
            "deviation_rmse": REAL,  # to the sequential samples of the same latents, in image units ([-1, 1])
            "deviation_max": REAL,
            "reconstruction_mse": REAL,
            "nonfinite_samples": INTEGER,
            **_OUTCOME,
        },
        # One row per cell and method.
        "memory": {
            **_IDENTITY,
            "peak_bytes": INTEGER,
            "weights_bytes": INTEGER,
            "cache_bytes": INTEGER,  # counted, not measured: deterministic
            "method": TEXT,  # cuda_allocated, cuda_reserved, rss or rss_since_start
            **_OUTCOME,
        },
        # One row per cell and pass that ended without rows in a table that has no status: layers, residuals.
        "failures": {
            **_IDENTITY,
            "pass": TEXT,
            **_OUTCOME,
        },
        # One row per flow, scope, reading, layer and o: the output of a layer with its o nearest predecessors left out
        # against its output with all of them (arXiv 2505.24791, Eq. 6). Written by `harness probe redundancy`.
        "redundancy": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "num_layers": INTEGER,
            "layer": INTEGER,  # decoding order, of the output that is compared
            "block": INTEGER,
            "o": INTEGER,  # predecessors left out
            "scope": TEXT,  # "layer": in this layer alone; "all": in every layer
            "reading": TEXT,  # "attention": masked out there; "input": their tokens are not seen at all
            "cosine": REAL,  # similarity of the two outputs, median over samples
            "cosine_p10": REAL,
            "cosine_p90": REAL,
            "l2": REAL,  # distance, median over samples
            "l2_p10": REAL,
            "l2_p90": REAL,
            "l2_relative": REAL,  # over the norm of the full output
            "fid": REAL,  # of the images, null unless every layer is affected
            "fid_features": TEXT,
            "num_samples": INTEGER,
        },
    }.items()
}
"""Table name to schema."""

KEYS: dict[str, list[str]] = {
    "cells": ["cell_id"],
    "timings": ["cell_id", "round"],
    "layers": ["cell_id", "layer"],
    "residuals": ["cell_id", "layer", "iteration"],
    "quality": ["cell_id"],
    "memory": ["cell_id", "method"],
    "failures": ["cell_id", "pass"],
    "redundancy": ["cell_id", "scope", "reading", "layer", "o"],
}
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
    return TABLES[table].empty_table().to_pandas()
