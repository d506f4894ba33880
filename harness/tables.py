"""The schema of every table, and the only place it is written down.

A table is tidy: one row per observation, snake_case, SI units in the column name. `cells` describes what was measured;
the other tables join it on `cell_id`, or on `group_id` where they tell of a whole group. Two runs are joined on
`cell_key`, which leaves the code version out.
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
    "denoise": REAL,  # noise that the denoising step after decoding takes out, in image units; null for no such step
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

_ATTEMPTS = {
    "attempts": INTEGER,  # times that the job was begun; more than 1 where its worker or machine was lost
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
            "fitted": TEXT,  # digest of the calibration or schedule that the decoder reads, or null
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
            "denoise_s": REAL,  # of the denoising step, no part of wall_s; null where none was asked for
            "nonfinite_retries": INTEGER,  # layers decoded again, exactly, since they were not finite; part of wall_s
            **_ATTEMPTS,
            **_OUTCOME,
        },
        # One row per group and round: the state of the device while the round was timed. What a platform does not tell
        # is null.
        "devices": {
            "group_id": TEXT,
            "round": INTEGER,
            "session": TEXT,
            "clock_start_hz": REAL,  # of the GPU's multiprocessors, or the mean over CPU cores
            "clock_end_hz": REAL,
            "temperature_start_c": REAL,  # of the GPU, or of the hottest CPU sensor
            "temperature_end_c": REAL,
            "throttled": FLAG,
            "throttle_reasons": TEXT,  # comma-separated: thermal, power, hardware
            "load_start": REAL,  # processes that ran or waited to, mean over the minute before
            "foreign_cpus": REAL,  # processors that others kept busy meanwhile, mean
            "foreign_processes": INTEGER,  # others that computed on the GPU, before or after
        },
        # Three rows per group: the baseline timed besides the rounds, before the first, before the middle one and after
        # the last. A machine that is the same throughout gives the same time.
        "sentinels": {
            "group_id": TEXT,
            "place": TEXT,  # start, middle or end
            "session": TEXT,
            "wall_s": REAL,  # median of up to three decodes of the group's batch
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
            **_ATTEMPTS,
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
            "reference": TEXT,  # "train": the images; "shipped-test": features of the test split shipped for a dataset
            "deviation_rmse": REAL,  # to the sequential samples of the same latents, in image units ([-1, 1])
            "deviation_max": REAL,
            "reconstruction_mse": REAL,
            "clip_iqa": REAL,  # mean over the samples
            "brisque": REAL,
            "perceptual_error": TEXT,  # why one of these two is null
            "nonfinite_samples": INTEGER,
            "nonfinite_retries": INTEGER,  # layers of batches decoded again, exactly, since they were not finite
            "skipped_images": INTEGER,  # corrupt real images left out
            **_ATTEMPTS,
            **_OUTCOME,
        },
        # One row per cell and method.
        "memory": {
            **_IDENTITY,
            "peak_bytes": INTEGER,
            "weights_bytes": INTEGER,
            "cache_bytes": INTEGER,  # counted, not measured: deterministic
            "method": TEXT,  # cuda_allocated, cuda_reserved, rss or rss_since_start
            **_ATTEMPTS,
            **_OUTCOME,
        },
        # One row per cell and pass that ended without rows in a table that has no status: layers, residuals.
        "failures": {
            **_IDENTITY,
            "pass": TEXT,
            **_OUTCOME,
        },
        # One row per flow, decoder and observable. Written by `harness probe observables`.
        "observables": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "num_layers": INTEGER,
            "decoder": TEXT,  # with its options, as on a command line
            "observable": TEXT,
            "mean": REAL,  # over samples
            "standard_error": REAL,
            "difference": REAL,  # to the sequential samples of the same latents and draws, mean over samples
            "difference_error": REAL,
            "expected": REAL,  # under the model itself, exact
            "independent": REAL,  # likewise, if spins ignored each other
            "num_samples": INTEGER,
        },
        # One row per probe, its options and flow: what the other tables that probes write join on `cell_id`.
        "probes": {
            **_IDENTITY,
            "probe": TEXT,  # registered name
            "options": TEXT,  # JSON, sorted keys
            "dataset": TEXT,
            "checkpoint": TEXT,
            "checkpoint_digest": TEXT,
            "num_tokens": INTEGER,
            "num_layers": INTEGER,
            "token_dim": INTEGER,
            "seed": INTEGER,
            "dtype": TEXT,
            "device": TEXT,
            "threads": INTEGER,
            "code_version": TEXT,  # of flows and decoders, and of the probe
        },
        # One row per flow and layer: GS-Jacobi's metrics (arXiv 2505.12849), see harness.decoders.crm, and the
        # iterations that they are to predict. Written by `harness probe crm`.
        "crm": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "num_layers": INTEGER,
            "layer": INTEGER,
            "block": INTEGER,
            "data": TEXT,  # of the forward pass: "images" or "samples"
            "crm": REAL,
            "crm_share": REAL,  # of the flow's sum
            "tough": FLAG,
            "igm_input": REAL,
            "igm_zeros": REAL,
            "guess": TEXT,  # that of the lower IGM
            "tau": REAL,
            "iterations_input": INTEGER,  # of UJD at tau from this guess
            "iterations_zeros": INTEGER,
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
            "reading": TEXT,  # "attention", "attention-self" or "input", see harness.probes.redundancy
            "cosine": REAL,  # similarity of the two outputs, median over samples
            "cosine_p10": REAL,
            "cosine_p90": REAL,
            "l2": REAL,  # distance, median over samples
            "l2_p10": REAL,
            "l2_p90": REAL,
            "l2_relative": REAL,  # over the norm of the full output
            "leak": REAL,  # share of the dependence on what is left out that is still there; scope "layer" alone
            "fid": REAL,  # of the images, null unless every layer is affected
            "fid_features": TEXT,
            "num_samples": INTEGER,
        },
        # One row per flow, kernel of attention, decoder, batch and method: what a decode needs, weights, cache and
        # tensors apart. Written by `harness probe memory`.
        "memory_scaling": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "num_layers": INTEGER,
            "token_dim": INTEGER,
            "channels": INTEGER,
            "transformer_layers": INTEGER,  # per flow layer
            "classes": INTEGER,
            "device": TEXT,
            "dtype": TEXT,
            "threads": INTEGER,
            "heads": INTEGER,
            "attention": TEXT,  # "fused": never a whole matrix of scores; "math": one per head and sample
            "decoder": TEXT,
            "label": TEXT,
            "batch_size": INTEGER,
            "window": INTEGER,  # the most tokens of a network call
            "weights_bytes": INTEGER,
            "cache_bytes": INTEGER,  # counted, like the next: deterministic
            "live_bytes": INTEGER,  # of all tensors alive at once, cache included, weights not
            "peak_bytes": INTEGER,  # measured
            "method": TEXT,  # as in `memory`
            **_OUTCOME,
        },
        # One row per flow, batch and round: seconds of the first layer. Written by `harness probe cost`.
        "costs": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "num_layers": INTEGER,
            "token_dim": INTEGER,
            "channels": INTEGER,
            "transformer_layers": INTEGER,  # per flow layer
            "classes": INTEGER,
            "device": TEXT,
            "dtype": TEXT,
            "threads": INTEGER,
            "image_size": INTEGER,
            "patch": INTEGER,
            "batch_size": INTEGER,
            "round": INTEGER,
            "iteration_s": REAL,  # of one Jacobi iteration of the whole layer
            "sequential_s": REAL,  # of the layer decoded sequentially, in the same round
        },
        # One row per flow, gain, threshold, batch and layer: iterations of UJD. Written by `harness probe coupling`.
        "couplings": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "num_layers": INTEGER,
            "token_dim": INTEGER,
            "channels": INTEGER,
            "transformer_layers": INTEGER,  # per flow layer
            "classes": INTEGER,
            "device": TEXT,
            "dtype": TEXT,
            "threads": INTEGER,
            "image_size": INTEGER,
            "patch": INTEGER,
            "gain": REAL,  # factor on how much the shifts of every layer depend on its tokens; 1 is the flow itself
            "tau": REAL,
            "batch_size": INTEGER,
            "layer": INTEGER,
            "block": INTEGER,
            "iterations": INTEGER,
            "converged": FLAG,
        },
        # One row per flow, threshold, batch and layer: the layer by Jacobi iteration, all others exact. With the next
        # three written by `harness probe layers`.
        "layer_costs": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "num_layers": INTEGER,
            "tau": REAL,
            "batch_size": INTEGER,
            "layer": INTEGER,
            "block": INTEGER,
            "iterations": INTEGER,
            "deviation_rmse": REAL,  # of the samples, in image units
            "deviation_max": REAL,
        },
        # One row per layer and round: its seconds both ways, from its exact input.
        "layer_seconds": {
            **_IDENTITY,
            "batch_size": INTEGER,
            "layer": INTEGER,
            "round": INTEGER,
            "sequential_s": REAL,
            "jacobi_s": REAL,
        },
        # One row per choice of the layers to be decoded sequentially: all 2^K of them.
        "layer_sets": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "num_layers": INTEGER,
            "tau": REAL,
            "batch_size": INTEGER,
            "sequential_layers": TEXT,  # such as "1+3"; "none"
            "iterations": INTEGER,  # of Jacobi, summed over layers
            "depth": INTEGER,
            "token_evaluations": REAL,  # per sample
            "deviation_rmse": REAL,
            "deviation_max": REAL,
            "predicted_s": REAL,  # sum of the layers' median seconds
        },
        # One row per choice that was timed and round; "auto" is the tuned schedule.
        "layer_set_rounds": {
            **_IDENTITY,
            "batch_size": INTEGER,
            "sequential_layers": TEXT,
            "round": INTEGER,
            "wall_s": REAL,
            "sequential_s": REAL,  # all layers sequential, in the same round
        },
        # One row per flow, layer, initial guess, sample and iteration: Jacobi iteration of one layer given its exact
        # input, in float64. Iteration 0 is the guess. Written by `harness probe convergence`, as are the next two.
        "convergence": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "layer": INTEGER,
            "block": INTEGER,
            "initial": TEXT,
            "sample": INTEGER,
            "iteration": INTEGER,
            "residual": REAL,  # max over tokens and channels of the update; null for iteration 0
            "error_inf": REAL,  # to the sequential output of the layer, max over tokens and channels
            "error_rms": REAL,
        },
        # One row per flow, layer, initial guess and sample: where that iteration came to its end (Prop. 3.2).
        "fixed_points": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "layer": INTEGER,
            "block": INTEGER,
            "initial": TEXT,
            "sample": INTEGER,
            "iterations": INTEGER,  # after which no bit changes any more, at most L - 1; null where it was cut short
            "latest_token": INTEGER,  # most that a token settled after the iteration of its own place l; at most 0
            "error_inf": REAL,  # of the fixed point to the sequential output: what rounding in another order makes
        },
        # One row per flow, layer, sample and power: norms of powers of the Jacobian of one Jacobi iteration.
        "jacobians": {
            **_IDENTITY,
            "dataset": TEXT,
            "checkpoint": TEXT,
            "num_tokens": INTEGER,
            "layer": INTEGER,
            "block": INTEGER,
            "sample": INTEGER,
            "power": INTEGER,
            "norm_spectral": REAL,
            "norm_frobenius": REAL,
        },
    }.items()
}
"""Table name to schema."""

KEYS: dict[str, list[str]] = {
    "cells": ["cell_id"],
    "timings": ["cell_id", "round"],
    "devices": ["group_id", "round"],
    "sentinels": ["group_id", "place"],
    "layers": ["cell_id", "layer"],
    "residuals": ["cell_id", "layer", "iteration"],
    "quality": ["cell_id"],
    "memory": ["cell_id", "method"],
    "failures": ["cell_id", "pass"],
    "observables": ["cell_id", "decoder", "observable"],
    "probes": ["cell_id"],
    "crm": ["cell_id", "layer"],
    "redundancy": ["cell_id", "scope", "reading", "layer", "o"],
    "convergence": ["cell_id", "layer", "initial", "sample", "iteration"],
    "fixed_points": ["cell_id", "layer", "initial", "sample"],
    "jacobians": ["cell_id", "layer", "sample", "power"],
    "memory_scaling": ["cell_id", "attention", "label", "batch_size", "method"],
    "costs": ["cell_id", "batch_size", "round"],
    "couplings": ["cell_id", "gain", "tau", "batch_size", "layer"],
    "layer_costs": ["cell_id", "batch_size", "layer"],
    "layer_seconds": ["cell_id", "batch_size", "layer", "round"],
    "layer_sets": ["cell_id", "batch_size", "sequential_layers"],
    "layer_set_rounds": ["cell_id", "batch_size", "sequential_layers", "round"],
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
    schema = TABLES[table]
    text = [name for name, kind in zip(schema.names, schema.types, strict=True) if kind == TEXT]
    # Columns of text that Arrow makes empty have no chunk at all, and pandas cannot join such.
    return schema.empty_table().to_pandas().assign(**{name: pd.Series([], dtype="str") for name in text})
