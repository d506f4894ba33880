"""Run folders whose truth is known: order of convergence, memory exponent, speed-up and deviation of every cell."""

import json
import zlib

import numpy as np
from PIL import Image

from harness.measure.probes.probe import probes
from harness.runs.store import RunStore

PROBES = {"tables": {table.name: table.declaration() for name in probes.names() for table in probes.get(name).tables}}
"""What the manifest of a run of probes declares."""

LAYERS, TOKENS = 4, 64
ORDER = 1.5
"""Order of convergence of every Jacobi layer."""
FLOOR = 1e-8
"""No error falls below it: rounding."""
EXPONENT = {"sequential": 1.0, "ujd": 2.0, "sejd": 1.5}
"""Exponents of peak memory in the batch size, by decoder; other decoders have sejd's."""
COST = {"sequential": 1.0, "ujd": 1 / 2.5, "sejd": 1 / 4.0, "gs-jacobi": 1 / 3.0}
"""Wall time over sequential's at tau = 0.5."""

MATRIX = {
    "name": "synthetic",
    "timing": {"rounds": 6},
    "quality": {"max_deviation": 0.15, "max_fid_increase": 0.05},
}
ENVIRONMENT = {
    "python": "3.11.2",
    "cpu": "a processor",
    "threads": 2,
    "device": "cpu",
    "gpu": None,
    "packages": {"torch": "2.13.0", "numpy": "2.3.0"},
    "git": {"commit": "0" * 40, "changed": False},
    "fingerprint": "0123456789ab",
}


def cells(
    decoders=("sequential", "ujd", "sejd", "gs-jacobi"),
    taus=(0.1, 0.3, 0.5, 1.0, 2.0),
    batches=(1, 4, 16),
    dataset="digits",
    tokens=TOKENS,
    layers=LAYERS,
    code="v1",
    options="{}",
):
    """One description per cell."""
    for batch in batches:
        for decoder in decoders:
            for tau in [None] if decoder == "sequential" else taus:
                key = f"{dataset}-{tokens}-{decoder}-{tau}-{batch}-{zlib.crc32(options.encode()):x}"
                yield {
                    "cell_id": f"{key}-{code}",
                    "cell_key": key,
                    "group_id": f"{dataset}-{tokens}-{batch}",
                    "dataset": dataset,
                    "checkpoint": dataset if tokens == 64 else f"{dataset}-{tokens}",
                    "decoder": decoder,
                    "label": decoder,
                    "tau": tau,
                    "options": options,
                    "batch_size": batch,
                    "seed": 0,
                    "num_tokens": tokens,
                    "num_layers": layers,
                    "device": "cpu",
                    "dtype": "float32",
                    "threads": 2,
                    "code_version": code,
                }


def identity(cell):
    return {name: cell[name] for name in ("cell_id", "cell_key")}


def described(cell):
    return {name: value for name, value in cell.items() if name != "code_version"}


def wall_s(cell):
    slower = 1.0 if not cell["tau"] else (0.5 / cell["tau"]) ** 0.2
    return 0.05 * cell["num_tokens"] / 64 * cell["batch_size"] ** 0.6 * COST.get(cell["decoder"], 0.2) * slower


def deviation(cell):
    scale = {"sequential": 0.0, "ujd": 0.16, "sejd": 0.08, "gs-jacobi": 0.05}.get(cell["decoder"], 0.02)
    return scale * (cell["tau"] or 0)


def timing_rows(found, rounds=6, session="s1", status="ok"):
    rng = np.random.default_rng(1)
    for number in range(rounds):
        drift = rng.lognormal(0, 0.3)
        for position, cell in enumerate(found):
            seconds = wall_s(cell) * drift * rng.lognormal(0, 0.02)
            encode = 0.01 * cell["batch_size"] ** 0.6 * drift
            measured = {
                "wall_s": seconds,
                "images_per_s": cell["batch_size"] / seconds,
                "encode_s": encode,
                "forward_ratio": seconds / encode,
            }
            yield {
                **described(cell),
                "session": session,
                "round": number,
                "position": position,
                **(measured if status == "ok" else {"error": "it did not end well"}),
                "status": status,
            }


def iterations(cell, layer):
    steps = cell["num_tokens"] - 1
    if cell["decoder"] == "sequential" or (cell["decoder"] == "sejd" and layer == 1):
        return "sequential", steps
    return "jacobi", min(steps, (9 if layer == 1 else 4) + round(-2 * np.log10(max(cell["tau"], 1e-6))))


def layer_rows(found):
    for cell in found:
        for layer in range(1, cell["num_layers"] + 1):
            mode, count = iterations(cell, layer)
            steps = cell["num_tokens"] - 1
            yield {
                **identity(cell),
                "layer": layer,
                "block": cell["num_layers"] - layer,
                "mode": mode,
                "iterations": count,
                "converged": True,
                "token_evaluations": float(steps if mode == "sequential" else steps * count),
                "depth": count,
                "wall_s": wall_s(cell)
                * count
                / max(1, sum(iterations(cell, n + 1)[1] for n in range(cell["num_layers"]))),
                "final_residual": None if mode == "sequential" else 0.3,
                "flags": "",
            }


def residual_rows(found, order=ORDER, noise=0.02, iterations_per_layer=None):
    """Errors that follow e[t+1] = 0.6 e[t]**order but for some noise; sequential's fall with the tokens left."""
    rng = np.random.default_rng(2)
    for cell in found:
        for layer in range(1, cell["num_layers"] + 1):
            mode, count = iterations(cell, layer)
            count = iterations_per_layer or count
            error = 0.9
            for step in range(1, count + 1):
                if mode == "sequential":
                    error = 0.8 * np.sqrt(max(0.0, 1 - step / count))
                elif step > 1:
                    error = max(0.6 * error**order * rng.lognormal(0, noise), FLOOR)
                yield {
                    **identity(cell),
                    "layer": layer,
                    "iteration": step,
                    "residual": None if mode == "sequential" else 4 * error,
                    "error_inf": 5 * error,
                    "error_rms": error,
                    "error_rms_p10": 0.8 * error,
                    "error_rms_p50": error,
                    "error_rms_p90": 1.3 * error,
                }


def quality_rows(found):
    for cell in found:
        apart = deviation(cell)
        yield {
            **identity(cell),
            "fid": 10.0 * (1 + apart),
            "fid_features": "digits-features",
            "fid_rise_low": apart - 0.001,
            "fid_rise_high": apart + 0.001,
            "kid": 0.01 * (1 + apart),
            "kid_std": 0.002,
            "num_samples": 1000,
            "num_reference": 1500,
            "deviation_rmse": apart,
            "deviation_low": 0.98 * apart,
            "deviation_high": 1.02 * apart,
            "deviation_max": 6 * apart,
            "nonfinite_samples": 0,
            "status": "ok",
        }


def memory_rows(found, noise=0.01):
    rng = np.random.default_rng(3)
    for cell in found:
        grown = cell["batch_size"] ** EXPONENT.get(cell["decoder"], 1.5)
        yield {
            **identity(cell),
            "peak_bytes": int(2**20 * grown * rng.lognormal(0, noise)),
            "weights_bytes": 4 * 2**20,
            "cache_bytes": 0 if cell["decoder"] == "ujd" else 2**16 * cell["batch_size"],
            "method": "rss",
            "status": "ok",
        }


def redundancy_rows(found):
    for cell in found:
        if cell["decoder"] == "sequential" and cell["batch_size"] == 1:
            for layer in range(1, cell["num_layers"] + 1):
                for o in (1, 2, 5):
                    cosine = 1 - (0.1 if layer == 1 else 0.02) * o
                    yield {
                        **identity(cell),
                        **{name: cell[name] for name in ("dataset", "checkpoint", "num_tokens", "num_layers")},
                        "layer": layer,
                        "block": cell["num_layers"] - layer,
                        "o": o,
                        "scope": "layer",
                        "reading": "attention",
                        "cosine": cosine,
                        "cosine_p10": cosine - 0.01,
                        "cosine_p90": cosine + 0.01,
                        "l2": o / layer,
                        "l2_p10": 0.9 * o / layer,
                        "l2_p90": 1.1 * o / layer,
                        "l2_relative": 0.1 * o / layer,
                        "num_samples": 16,
                    }


TABLES = {
    "timings": timing_rows,
    "layers": layer_rows,
    "residuals": residual_rows,
    "quality": quality_rows,
    "memory": memory_rows,
    "redundancy": redundancy_rows,
}


def write_run(path, found=None, only=None, manifest=None, images=True, **rows):
    """A run folder with some cells.

    Args:
        path: where.
        found: descriptions as from `cells`; all of them by default.
        only: names of the tables to write besides `cells`; all by default.
        manifest: keys that replace the usual ones.
        images: whether to draw sample grids.
        rows: table name to rows that replace the generated ones.
    """
    found = list(cells() if found is None else found)
    with RunStore.create(path, {"matrix": MATRIX, "environment": ENVIRONMENT, **PROBES, **(manifest or {})}) as store:
        store.append("cells", [{**cell, "token_dim": 1, "checkpoint_digest": "0" * 64} for cell in found])
        for name, make in TABLES.items():
            if only is None or name in only or name in rows:
                store.append(name, rows.get(name) or list(make(found)))
        for name in set(rows) - set(TABLES):
            store.append(name, rows[name])
        if images:
            write_grids(path / "samples", found)
    return path


def write_grids(folder, found):
    """A grid per cell: the same picture for all, and noise that grows with the deviation."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    plain = np.kron(rng.integers(40, 200, (4, 8)), np.ones((16, 16)))
    for cell in found:
        noisy = plain + rng.normal(0, 127.5 * deviation(cell), plain.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{cell['cell_id']}.png")


def options(**values):
    """As the table stores them."""
    return json.dumps(values, sort_keys=True)
