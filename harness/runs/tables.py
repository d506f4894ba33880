"""The tables of every run. A probe declares its own beside these.

`cells` describes what was measured; the other tables join it on `cell_id`, or on `group_id` where they tell of a whole
group. Two runs are joined on `cell_key`, which leaves the code version out.
"""

from __future__ import annotations

from harness.runs.table import ATTEMPTS, DESCRIPTION, FLAG, IDENTITY, INTEGER, OUTCOME, REAL, TEXT, Table

_ALL = (
    # One row per cell: what it is. `group_id` names the cells that are timed in paired rounds.
    Table(
        "cells",
        ("cell_id",),
        {
            **IDENTITY,
            "group_id": TEXT,
            **DESCRIPTION,
            "token_dim": INTEGER,
            "checkpoint_digest": TEXT,  # SHA-256
            "fitted": TEXT,  # digest of the calibration or schedule that the decoder reads, or null
            "code_version": TEXT,
        },
    ),
    # One row per cell and round. Every round of a group decodes each of its cells once, in shuffled order, and
    # encodes once; rows of one `session` (one process) and `round` are pairs.
    Table(
        "timings",
        (
            "cell_id",
            "round",
        ),
        {
            **IDENTITY,
            "group_id": TEXT,
            **DESCRIPTION,
            "session": TEXT,
            "round": INTEGER,
            "position": INTEGER,  # place in the shuffled order
            "wall_s": REAL,
            "images_per_s": REAL,
            "encode_s": REAL,  # one forward pass of the same batch in the same round
            "forward_ratio": REAL,  # wall_s / encode_s
            "denoise_s": REAL,  # of the denoising step, no part of wall_s; null where none was asked for
            "nonfinite_retries": INTEGER,  # layers decoded again, exactly, since they were not finite; part of wall_s
            **ATTEMPTS,
            **OUTCOME,
        },
    ),
    # One row per group and round: the state of the device while the round was timed. What a platform does not tell
    # is null.
    Table(
        "devices",
        (
            "group_id",
            "round",
        ),
        {
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
    ),
    # Three rows per group: the baseline timed besides the rounds, before the first, before the middle one and after
    # the last. A machine that is the same throughout gives the same time.
    Table(
        "sentinels",
        (
            "group_id",
            "place",
        ),
        {
            "group_id": TEXT,
            "place": TEXT,  # start, middle or end
            "session": TEXT,
            "wall_s": REAL,  # median of up to three decodes of the group's batch
            **OUTCOME,
        },
    ),
    # One row per cell and layer, from one decode of the cell's own latents, nothing recorded inside it.
    Table(
        "layers",
        (
            "cell_id",
            "layer",
        ),
        {
            **IDENTITY,
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
            **ATTEMPTS,
        },
    ),
    # One row per cell, layer and network call, from a second decode that is recorded, never timed.
    Table(
        "residuals",
        (
            "cell_id",
            "layer",
            "iteration",
        ),
        {
            **IDENTITY,
            "layer": INTEGER,
            "iteration": INTEGER,  # from 1
            "residual": REAL,  # of the stopping rule; null where nothing iterates
            "error_inf": REAL,  # to the exact output of the layer for the same inputs: max over batch, tokens, channels
            "error_rms": REAL,
            "error_rms_p10": REAL,  # over samples
            "error_rms_p50": REAL,
            "error_rms_p90": REAL,
        },
    ),
    # One row per cell.
    Table(
        "quality",
        ("cell_id",),
        {
            **IDENTITY,
            "fid": REAL,
            "fid_features": TEXT,  # names the network; never compared across
            "kid": REAL,
            "kid_std": REAL,
            "num_samples": INTEGER,
            "num_reference": INTEGER,
            "reference_digest": TEXT,  # of these images or features, and of the network; never compared across
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
            **ATTEMPTS,
            **OUTCOME,
        },
    ),
    # One row per cell and method.
    Table(
        "memory",
        (
            "cell_id",
            "method",
        ),
        {
            **IDENTITY,
            "peak_bytes": INTEGER,
            "weights_bytes": INTEGER,
            "cache_bytes": INTEGER,  # counted, not measured: deterministic
            "method": TEXT,  # cuda_allocated, cuda_reserved, rss or rss_since_start
            **ATTEMPTS,
            **OUTCOME,
        },
    ),
    # One row per cell and pass that ended without rows in a table that has no status: layers, residuals.
    Table(
        "failures",
        (
            "cell_id",
            "pass",
        ),
        {
            **IDENTITY,
            "pass": TEXT,
            **OUTCOME,
        },
    ),
    # One row per probe, its options and flow: what the other tables that probes write join on `cell_id`.
    Table(
        "probes",
        ("cell_id",),
        {
            **IDENTITY,
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
    ),
)

TABLES = {table.name: table for table in _ALL}
"""The tables of every run, by name."""
