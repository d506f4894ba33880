"""What the studies of memory and of layers find in tables whose truth is known."""

import pandas as pd
import pytest
from synthetic import PROBES

from analysis.load import load
from analysis.studies.memory import findings as memory
from analysis.studies.memory.formula import predicted_live_bytes
from analysis.studies.ujd_loss import findings as ujd_loss
from analysis.studies.which_layers import findings as which_layers
from harness.runs.store import RunStore

IDENTITY = {"cell_id": "c", "cell_key": "k"}
DECODERS = ("sequential", "ujd", "sejd", "gs-jacobi")


def runs(path, **tables):
    with RunStore.create(path, PROBES) as store:
        for name, rows in tables.items():
            store.append(name, rows)
    return load([path])


def memory_rows():
    """Rows in which decoders need exactly what the formula says, and processes a tenth more."""
    rows = [
        {
            **IDENTITY, "cell_id": f"{length}-{depth}", "checkpoint": f"random-4-128-3-{depth}@{int(length**0.5) * 4}",
            "num_tokens": length, "token_dim": 48, "channels": 128, "heads": 2, "transformer_layers": depth,
            "classes": 0, "dtype": "float32", "attention": kernel, "decoder": decoder, "label": decoder,
            "batch_size": batch, "weights_bytes": 1, "method": "rss", "status": "ok",
            "window": {"sequential": 1, "gs-jacobi": length // 8}.get(decoder, length - 1),
            "cache_bytes": 0 if decoder == "ujd" else 4 * 2 * depth * length * 128 * batch,
        }
        for length, depth in ((64, 2), (256, 2), (1024, 2), (4096, 2), (64, 8))
        for batch in (4, 16, 64)
        for kernel in ("fused", "math")
        for decoder in DECODERS
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    live = predicted_live_bytes(frame).astype(int)
    return frame.assign(live_bytes=live, peak_bytes=(1.1 * live).astype(int)).to_dict("records")


def test_memory_grows_as_the_formula_says_and_its_error_is_told(tmp_path):
    found = memory.findings(runs(tmp_path / "run", memory_scaling=memory_rows()))
    assert found.values["worst"] < 1e-3
    assert found.timed["peaks"]["error"].to_numpy() == pytest.approx(1 / 1.1 - 1, abs=1e-3)
    claims = {(claim.claim, claim.flow): claim.agrees for claim in found.claims}
    assert claims["memory-order", "random weights, attention fused"] is False
    assert claims["memory-order", "random weights, attention math"] is False, "sequential grows linearly"
    assert found.values["equal_depth"] == 6


def layer_rows():
    """Two layers: the second spoils the sample more and is slow to iterate, so it is the one to keep."""
    seconds = {1: (0.5, 0.1), 2: (0.5, 0.4)}
    spoils = {1: 0.01, 2: 0.05}
    shared = {**IDENTITY, "checkpoint": "toy", "dataset": "toy", "num_tokens": 16, "num_layers": 2, "tau": 0.5}
    shared |= {"batch_size": 4}
    sets, costs, each, clock = [], [], [], []
    for name in ("none", "1", "2", "1+2"):
        left = [layer for layer in seconds if str(layer) not in name]
        cost = sum(seconds[layer][layer in left] for layer in seconds)
        deviation = sum(spoils[layer] ** 2 for layer in left) ** 0.5
        sets.append(
            shared
            | {
                "samples": 256,
                "sequential_layers": name,
                "iterations": 3 * len(left),
                "depth": 3 * len(left) + 15 * (2 - len(left)),
            }
            | {"token_evaluations": 1.0, "deviation_rmse": deviation, "deviation_max": deviation, "predicted_s": cost}
        )
        clock += [
            {**IDENTITY, "batch_size": 4, "sequential_layers": name, "round": number}
            | {"wall_s": cost, "sequential_s": 1.0}
            for number in range(5)
        ]
    for layer, (sequential_s, jacobi_s) in seconds.items():
        costs.append(shared | {"layer": layer, "block": 2 - layer, "iterations": 3, "deviation_rmse": spoils[layer]})
        both = {"sequential_s": sequential_s, "jacobi_s": jacobi_s}
        each.append({**IDENTITY, "batch_size": 4, "layer": layer, "round": 0} | both)
    return {"layer_sets": sets, "layer_costs": costs, "layer_seconds": each, "layer_set_rounds": clock}


def test_the_layer_that_spoils_most_is_the_one_to_keep(tmp_path):
    found = which_layers.findings(runs(tmp_path / "run", **layer_rows()))
    assert list(found.tables["front"]["sequential_layers"]) == ["none", "2", "1+2"]  # "1" costs as much and spoils more
    (answer,) = found.timed["answer"].to_dict("records")
    assert answer["by_model"] == answer["by_clock"] == "2"
    assert answer["speedup"] == pytest.approx(1 / 0.6) and answer["paper_speedup"] == pytest.approx(1 / 0.9)
    (claim,) = found.claims
    assert claim.agrees is False and "layer 2" in claim.measured


def test_sejd_that_selects_is_set_beside_the_first_crms_choice_and_auto(tmp_path):
    tables = layer_rows()
    told = {**IDENTITY, "checkpoint": "toy", "batch_size": 4}
    tables["layer_choice"] = [told | {"layer": layer, "kept": layer == 2} for layer in (1, 2)]
    tables["layer_errors"] = [
        told | {"layer": layer, "iteration": t, "residual": 0.1, "error_rms": 0.5**t, "gain": layer, "samples": 32}
        for layer in (1, 2)
        for t in (1, 2)
    ]
    tables["crm"] = [{**IDENTITY, "checkpoint": "toy", "layer": layer, "crm_share": layer / 3} for layer in (1, 2)]
    tables["layer_sets"].append(
        tables["layer_sets"][0] | {"sequential_layers": "auto", "deviation_rmse": 0.03, "predicted_s": None}
    )
    found = which_layers.findings(runs(tmp_path / "run", **tables))
    ways = found.tables["selected"].set_index("way")
    assert ways["sequential_layers"].to_dict() == {"first": "1", "measured": "2", "crm": "2", "auto": "auto"}
    assert ways.loc["measured", "of_first"] == pytest.approx(0.01 / 0.05) and ways.loc["first", "of_first"] == 1
    (sentence,) = found.values["selected"]
    assert "256 samples: measurement keeps 2 and leaves a deviation of 0.01, 0.2 times the 0.05" in sentence
    assert found.tables["errors"]["deviation"].tolist() == [0.5, 0.25, 1, 0.5] and "errors" in found.figures
    assert "auto" not in set(found.tables["choices"]["sequential_layers"]) and not found.values["few"]
    del tables["layer_sets"][2]
    assert which_layers.findings(runs(tmp_path / "few", **tables)).values["few"] == ["toy"]


def test_iterations_are_set_beside_dependency_layer_by_layer(tmp_path):
    probed = [
        {**IDENTITY, "checkpoint": "toy", "layer": layer, "o": o, "scope": "layer", "reading": "input"}
        | {"cosine": 0.9, "l2_relative": layer + o}
        for layer in (1, 2, 3)
        for o in (1, 2)
    ]
    counted = [
        {**IDENTITY, "checkpoint": "toy", "gain": gain, "tau": 0.5, "batch_size": batch, "layer": layer}
        | {"iterations": 10 * layer + batch}
        for gain in (0.5, 1.0)
        for batch in (1, 4)
        for layer in (1, 2, 3)
    ]
    strength = ujd_loss.dependency(runs(tmp_path / "run", redundancy=probed, couplings=counted))
    assert strength["l2_relative"].tolist() == [2, 3, 4] and strength["iterations"].tolist() == [14, 24, 34]
    assert ujd_loss.correlation(strength)["value"] == pytest.approx(1)
    assert ujd_loss.correlation(strength[:0]) is None
