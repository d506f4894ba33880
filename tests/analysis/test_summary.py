"""The printed table, from tables made by hand: every figure in it can be checked by eye."""

import pandas as pd
import pytest
from rich.console import Console

from analysis.summary import print_summary, summarise
from harness.runs.store import RunStore, read_run

SECONDS = {"sequential": 2.0, "fast": 0.5, "sloppy": 0.25, "broken": None, "sejd": 1.0}


@pytest.fixture
def run(tmp_path):
    """Decoders of K = 2, L = 5: fast is 4 times as fast and valid, sloppy 8 times and invalid, broken fails."""
    limits = {"max_deviation": 0.1, "max_fid_increase": 0.05}
    with RunStore.create(tmp_path / "run", {"matrix": {"quality": limits}}) as store:
        for label, seconds in SECONDS.items():
            cell = {
                "cell_id": label,
                "cell_key": label,
                "group_id": "g",
                "dataset": "digits",
                "checkpoint": "digits",
                "decoder": "sequential" if label == "sequential" else "ujd",
                "label": label,
                "tau": None if label == "sequential" else 0.5,
                "options": "{}",
                "batch_size": 4,
                "seed": 0,
                "num_tokens": 5,
                "num_layers": 2,
                "device": "cpu",
                "dtype": "float32",
                "threads": 1,
            }
            outcome = {"status": "ok"} if seconds else {"status": "failed", "error": "it [broke]"}
            rounds = [1.0, 1.1, 1.2, 1.3, 1.4]
            store.append("cells", [cell])
            store.append(
                "timings",
                [
                    cell | outcome | {"session": "s", "round": i, "wall_s": seconds and seconds * slow,
                                      "encode_s": 0.1 * slow, "forward_ratio": seconds and seconds / 0.1}
                    for i, slow in enumerate(rounds)
                ],
            )  # fmt: skip
            if seconds:
                deviation = {"sequential": 0.0, "fast": 0.05, "sloppy": 0.3, "sejd": 0.08}[label]
                row = {"cell_id": label, "cell_key": label, "num_samples": 100, "fid": 5.0, "fid_features": "net"}
                row |= {"fid_rise_low": -0.01, "fid_rise_high": 0.02}
                store.append("quality", [row | {"deviation_rmse": deviation, "nonfinite_samples": 0, "status": "ok"}])
                iterations = 4 if label == "sequential" else 3
                layers = [
                    {
                        "cell_id": label,
                        "cell_key": label,
                        "layer": layer,
                        "mode": "jacobi",
                        "iterations": iterations + layer - 1,
                        "converged": layer == 1,
                        "depth": iterations,
                        "token_evaluations": 4.0 * iterations,
                    }
                    for layer in (1, 2)
                ]
                store.append("layers", layers)
    return read_run(tmp_path / "run")


def test_figures_come_from_pairs_and_counts(run):
    frame = summarise(run).set_index("label")
    assert list(frame.index) == list(SECONDS)
    assert frame["speedup"].tolist()[:3] == pytest.approx([1, 4, 8]) and pd.isna(frame["speedup"]["broken"])
    assert frame["forward_ratio"].tolist()[:3] == pytest.approx([20, 5, 2.5])
    assert frame["fpe"].tolist()[:3] == [4, 3, 3] and frame["depth"].tolist()[:3] == [8, 6, 6]
    assert frame["iterations"]["fast"] == "3 4!"
    assert frame["valid"].tolist()[:3] == [True, True, False]
    assert (frame["status"]["broken"], frame["pass"]["broken"]) == ("failed", "timings")


def test_the_table_headlines_valid_cells_only(run):
    console = Console(width=170, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(run, console)
    text = console.export_text()
    told = "use fast tau 0.5 (--decoder 'ujd tau=0.5'): 4.00 times [4.00, 4.00] faster than sequential, "
    told += "2.00 times [2.00, 2.00] faster than SeJD at tau 0.5, deviation 0.05, FID +0.0 % [-1.0, +2.0] (100 samples)"
    assert told in " ".join(text.split())
    assert "(8.00x [8.00, 8.00])" in text and "(4.00x" not in text
    assert "it [broke]" in text and "timings: failed" in text
    assert "features of net, 100 samples" in text
