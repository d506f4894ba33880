"""The printed table, from tables made by hand: every figure in it can be checked by eye."""

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from analysis.summary import print_summary, summarise
from harness.runs.store import RunStore, read_run

SECONDS = {"sequential": 2.0, "fast": 0.5, "sloppy": 0.25, "broken": None, "sejd": 1.0}


@pytest.fixture
def run(tmp_path):
    return stored(tmp_path / "run")


def stored(path, left_out=(), failed=("broken",), quality=True, samples=1000):
    """Decoders of K = 2, L = 5: fast is 4 times as fast and valid, sloppy 8 times and invalid, broken fails."""
    limits = {"max_deviation": 0.1, "max_fid_increase": 0.05}
    with RunStore.create(path, {"matrix": {"quality": limits}}) as store:
        for label, seconds in SECONDS.items():
            if label in left_out:
                continue
            seconds = None if label in failed else seconds
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
            rounds = [1.0, 1.1, 1.2, 1.2, 1.3, 1.4]
            store.append("cells", [cell])
            store.append(
                "timings",
                [
                    cell | outcome | {"session": "s", "round": i, "wall_s": seconds and seconds * slow,
                                      "encode_s": 0.1 * slow, "forward_ratio": seconds and seconds / 0.1}
                    for i, slow in enumerate(rounds)
                ],
            )  # fmt: skip
            if seconds and quality:
                deviation = {"sequential": 0.0, "fast": 0.05, "sloppy": 0.3, "sejd": 0.08}[label]
                row = {"cell_id": label, "cell_key": label, "num_samples": samples, "fid": 5.0, "fid_features": "net"}
                row |= {"fid_rise_low": -0.01, "fid_rise_high": 0.02}
                row |= {"deviation_low": 0.9 * deviation, "deviation_high": 1.1 * deviation}
                store.append("quality", [row | {"deviation_rmse": deviation, "nonfinite_samples": 0, "status": "ok"}])
            if seconds:
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
    return read_run(path)


def test_figures_come_from_pairs_and_counts(run):
    frame = summarise(run).set_index("label")
    assert list(frame.index) == list(SECONDS)
    assert frame["speedup"].tolist()[:3] == pytest.approx([1, 4, 8]) and pd.isna(frame["speedup"]["broken"])
    assert frame["forward_ratio"].tolist()[:3] == pytest.approx([20, 5, 2.5])
    assert frame["fpe"].tolist()[:3] == [4, 3, 3] and frame["depth"].tolist()[:3] == [8, 6, 6]
    assert frame["iterations"]["fast"] == "3 4!"
    assert frame["valid"].tolist()[:3] == ["valid", "valid", "invalid"]
    assert (frame["status"]["broken"], frame["pass"]["broken"]) == ("failed", "timings")


def test_the_table_headlines_valid_cells_only(run):
    console = Console(width=170, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(run, console)
    text = console.export_text()
    told = "use fast tau 0.5 (--decoder 'ujd tau=0.5'): 4.00 times [4.00, 4.00] faster than sequential, "
    told += (
        "2.00 times [2.00, 2.00] faster than SeJD at tau 0.5, deviation 0.05, FID +0.0 % [-1.0, +2.0] (1,000 samples)"
    )
    assert told in " ".join(text.split())
    assert "(8.00x [8.00, 8.00])" in text and "(4.00x" not in text
    assert "it [broke]" in text and "timings: failed" in text
    assert "features of net, 1,000 samples" in text


def printed(run, width=170):
    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(run, console)
    return console.export_text()


@pytest.mark.parametrize("width", [20, 60, 80, 100, 120, 160])
def test_a_narrow_terminal_keeps_every_decoder_and_says_what_it_leaves_out(run, width):
    text = printed(run, width)
    table = text.partition("\nTime is the median")[0]
    assert "…" not in text and all(label in table for label in SECONDS)
    assert "4.00x [4.00," in table and ("No room for" in text) == (width in (80, 100, 120))
    assert width == 20 or max(map(len, table.splitlines())) <= width
    if width == 100:
        assert re.search("No room for KID, depth(, | and )", text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"left_out": ["sequential"]}, "sequential, which the others are compared with, is not among the cells here"),
        ({"failed": ["sequential"]}, "no round here was ended well by sequential and another decoder"),
        (
            {"failed": ["fast", "sloppy", "sejd", "broken"]},
            "no round here was ended well by sequential and another decoder",
        ),
        ({"left_out": ["fast", "sloppy", "sejd", "broken"]}, "nothing but sequential was measured here"),
        ({"quality": False}, "whether it is valid was not measured"),
        ({"left_out": ["fast", "sejd"]}, "no other decoder is faster than sequential and valid here"),
    ],
)
def test_what_is_absent_is_no_verdict(tmp_path, changes, said):
    text = " ".join(printed(stored(tmp_path / "run", **changes)).split())
    assert said in text and ("no other decoder is faster" in text) == ("no other decoder is faster" in said)


def test_what_the_samples_do_not_decide_is_said_with_its_reason_also_where_it_is_recommended(tmp_path):
    alone = " ".join(printed(stored(tmp_path / "alone", left_out=["sejd"], samples=100)).split())
    assert "whether it is valid these samples do not decide" in alone
    run = stored(tmp_path / "run", samples=100)
    frame = summarise(run).set_index("label")
    assert frame["valid"].tolist()[:3] == ["valid", "undecided", "invalid"], "sequential is what it is compared with"
    text = " ".join(printed(run).split())
    assert "? fast tau 0.5: undecided, FID +0.0% (100 samples are too few), allowed +5%." in text
    assert "whether it is valid is undecided (FID +0.0% (100 samples are too few), allowed +5%)" in text
    assert "deviation 0.3 (0.27 to 0.33), allowed 0.1" in frame["why"]["sloppy"]


def test_every_printed_figure_is_that_of_the_tables(run):
    fast = next(line for line in printed(run).splitlines() if "fast" in line).split("│")
    assert [cell.strip() for cell in fast[1:-1]] == [
        "fast", "0.5", "0.6", "4.00x [4.00, 4.00]", "5.0", "5.00", "", "0.05", "3.00", "6", "3 4!", "valid"
    ]  # fmt: skip
