"""Columns that several tables have in common."""

from __future__ import annotations

import pyarrow as pa

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
