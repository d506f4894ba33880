"""Tables of `harness probe NAME`."""

from __future__ import annotations

from harness.runs.tables.columns import FLAG, FLOW, IDENTITY, INTEGER, NETWORK, OUTCOME, REAL, TEXT

_LAYER = {
    "dataset": TEXT,
    "checkpoint": TEXT,
    "num_tokens": INTEGER,
    "layer": INTEGER,
    "block": INTEGER,
}

COLUMNS = {
    # One row per flow, decoder and observable. Written by `harness probe observables`.
    "observables": {
        **IDENTITY,
        **FLOW,
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
    # One row per flow and layer: GS-Jacobi's metrics (arXiv 2505.12849), see harness.fitting.crm, and the
    # iterations that they are to predict. Written by `harness probe crm`.
    "crm": {
        **IDENTITY,
        **FLOW,
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
        **IDENTITY,
        **FLOW,
        "layer": INTEGER,  # decoding order, of the output that is compared
        "block": INTEGER,
        "o": INTEGER,  # predecessors left out
        "scope": TEXT,  # "layer": in this layer alone; "all": in every layer
        "reading": TEXT,  # "attention", "attention-self" or "input", see harness.measure.probes.redundancy
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
        **IDENTITY,
        **FLOW,
        **NETWORK,
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
        **OUTCOME,
    },
    # One row per flow, batch and round: seconds of the first layer. Written by `harness probe cost`.
    "costs": {
        **IDENTITY,
        **FLOW,
        **NETWORK,
        "image_size": INTEGER,
        "patch": INTEGER,
        "batch_size": INTEGER,
        "round": INTEGER,
        "iteration_s": REAL,  # of one Jacobi iteration of the whole layer
        "sequential_s": REAL,  # of the layer decoded sequentially, in the same round
    },
    # One row per flow, gain, threshold, batch and layer: iterations of UJD. Written by `harness probe coupling`.
    "couplings": {
        **IDENTITY,
        **FLOW,
        **NETWORK,
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
        **IDENTITY,
        **FLOW,
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
        **IDENTITY,
        "batch_size": INTEGER,
        "layer": INTEGER,
        "round": INTEGER,
        "sequential_s": REAL,
        "jacobi_s": REAL,
    },
    # One row per choice of the layers to be decoded sequentially: all 2^K of them.
    "layer_sets": {
        **IDENTITY,
        **FLOW,
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
        **IDENTITY,
        "batch_size": INTEGER,
        "sequential_layers": TEXT,
        "round": INTEGER,
        "wall_s": REAL,
        "sequential_s": REAL,  # all layers sequential, in the same round
    },
    # One row per flow, layer, initial guess, sample and iteration: Jacobi iteration of one layer given its exact
    # input, in float64. Iteration 0 is the guess. Written by `harness probe convergence`, as are the next two.
    "convergence": {
        **IDENTITY,
        **_LAYER,
        "initial": TEXT,
        "sample": INTEGER,
        "iteration": INTEGER,
        "residual": REAL,  # max over tokens and channels of the update; null for iteration 0
        "error_inf": REAL,  # to the sequential output of the layer, max over tokens and channels
        "error_rms": REAL,
    },
    # One row per flow, layer, initial guess and sample: where that iteration came to its end (Prop. 3.2).
    "fixed_points": {
        **IDENTITY,
        **_LAYER,
        "initial": TEXT,
        "sample": INTEGER,
        "iterations": INTEGER,  # after which no bit changes any more, at most L - 1; null where it was cut short
        "latest_token": INTEGER,  # most that a token settled after the iteration of its own place l; at most 0
        "error_inf": REAL,  # of the fixed point to the sequential output: what rounding in another order makes
    },
    # One row per flow, layer, sample and power: norms of powers of the Jacobian of one Jacobi iteration.
    "jacobians": {
        **IDENTITY,
        **_LAYER,
        "sample": INTEGER,
        "power": INTEGER,
        "norm_spectral": REAL,
        "norm_frobenius": REAL,
    },
}

KEYS = {
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
