"""README.md says what the stored tables say: nothing in its generated parts is typed, nothing in them is old."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis.figures.files import write_csv
from analysis.readme import FIGURE, decoders_of, frontier, rendered
from harness.errors import HarnessError

ROOT = Path(__file__).parents[2]
RESULTS, TEXT = ROOT / "results", (ROOT / "README.md").read_text(encoding="utf-8")


def written(text, results=RESULTS):
    return rendered(text, results, decoders_of(results))


def test_its_parts_are_those_that_the_stored_tables_write():
    assert written(TEXT) == TEXT


def test_a_number_that_somebody_typed_is_written_over():
    part = TEXT.partition("<!-- begin fastest -->")[2]
    number = re.search(r"\d+\.\dx", part)[0]
    assert written(TEXT.replace(number, "99.9x")) == TEXT


def test_the_first_figure_is_the_frontier_of_every_decoder_of_the_stored_run(tmp_path):
    assert TEXT.index(f"results/figures/{FIGURE}.png") < TEXT.index("results/figures/convergence")
    frame = frontier(decoders_of(RESULTS))
    write_csv(frame, tmp_path / "frontier.csv")
    stored = RESULTS / "figures" / f"{FIGURE}.csv"
    assert (tmp_path / "frontier.csv").read_bytes() == stored.read_bytes()
    assert {"sequential", "ujd", "sejd", "gs-jacobi", "frontier", "fitted", "auto"} <= set(frame["decoder"])
    assert stored.with_suffix(".png").is_file()


def test_prose_outside_of_the_parts_has_no_measured_number():
    prose = re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->|^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"\d[\d.]*x\b|\b0\.0\d+\b(?!`)", prose)


def test_a_document_without_the_marks_is_told_so(tmp_path):
    with pytest.raises(HarnessError, match="has to hold '<!-- begin demo -->'"):
        written(TEXT.replace("<!-- begin demo -->", ""))


def test_another_stored_number_makes_another_text(tmp_path):
    for name in ("digits", "fastest"):
        shutil.copytree(RESULTS / "runs" / name, tmp_path / "runs" / name)
    (part,) = (tmp_path / "runs" / "digits" / "quality.parquet").glob("*.parquet")
    quality = pd.read_parquet(part)
    quality.assign(fid=quality["fid"] + 1).to_parquet(part)
    assert written(TEXT, tmp_path) != TEXT
