"""The page: complete where there is something to show, and with a reason where there is not."""

import os
import re
import subprocess
import sys
import tomllib
import warnings
from html import escape
from pathlib import Path

import pandas as pd
import pytest
from synthetic import cells, deviation, layer_rows, residual_rows, timing_rows, write_run

from analysis.figures.files import write_csv
from analysis.figures.fit import WIDTHS
from analysis.load import load
from analysis.report.page import HEADLINE, PLOTS, TABLES, build
from harness.errors import HarnessError, StoreError

ROOT = Path(__file__).parents[2]


def page_of(path, **options):
    return build([path], **options).read_text(encoding="utf-8")


def left_out(page):
    """Section to its reason."""
    return dict(re.findall(r'<dt id="([^"]+)">[^<]*</dt><dd class="omitted">(.*?)</dd>', page))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "full", list(cells(batches=(1, 4), taus=(0.1, 0.5))))
    return folder, page_of(folder, formats=("svg", "pdf"))


def test_every_figure_is_on_the_page_with_its_files_beside_it(full):
    folder, page = full
    assert set(left_out(page)) == {
        "certificates", "memory-against-length", "redundancy-strips", "initial-guesses", "jacobian-powers"
    }  # fmt: skip
    links = set(re.findall(r'href="(figures/[^"]+)"', page))
    assert all((folder / link).stat().st_size > 0 for link in links)
    for plot in PLOTS:
        if plot.name not in left_out(page):
            kinds = {Path(link).suffix for link in links if Path(link).stem == plot.name}
            assert kinds == {".csv", ".png", ".svg", ".pdf"}, plot.name
    assert {f"figures/table1.{kind}" for kind in ("csv", "md", "tex")} <= links


def test_the_page_asks_for_nothing_from_outside(full):
    _, page = full
    assert not re.findall(r'(?:src|href)="(?!#|data:|figures/)[^"]*"', page)
    assert not re.findall(r"url\((?!#)[^)]*\)|@import", page)
    assert "default-src 'none'" in page


def test_inline_drawings_have_ids_of_their_own_and_the_pages_colours(full):
    _, page = full
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= set(ids)
    assert "currentColor" in page and "#010203" not in page


def test_csvs_are_the_same_bytes_every_time(full, tmp_path):
    folder, page = full
    runs = load([folder])
    for entry in (*PLOTS, *TABLES, HEADLINE):
        if entry.name not in left_out(page):
            name = write_csv(entry.data(runs), tmp_path / f"{entry.name}.csv")
            assert (tmp_path / name).read_bytes() == (folder / "figures" / name).read_bytes(), name


def test_csvs_hold_no_place_on_this_machine(full):
    folder, page = full
    for file in (folder / "figures").glob("*.csv"):
        assert str(folder) not in file.read_text()
        assert not pd.read_csv(file).empty
    assert str(folder) not in page


BATCH = {"batches": (4,), "taus": (0.5,)}


def few(path, found=None, *, only=(), images=False, **rows):
    return write_run(path, list(cells(**BATCH)) if found is None else found, only=only, images=images, **rows)


ODD_RUNS = {
    "nothing at all": lambda path: few(path, []),
    "cells alone": few,
    "timings alone": lambda path: few(path, only=("timings",)),
    "layers alone": lambda path: few(path, only=("layers",)),
    "quality alone": lambda path: few(path, only=("quality",)),
    "one round": lambda path: few(path, only=("quality",), timings=list(timing_rows(list(cells(**BATCH)), rounds=1))),
    "one layer": lambda path: write_run(path, list(cells(layers=1, decoders=("sequential", "ujd"), **BATCH))),
    "one token": lambda path: write_run(path, list(cells(tokens=1, decoders=("sequential",), **BATCH)), images=False),
    "sequential alone": lambda path: write_run(path, list(cells(decoders=("sequential",), **BATCH))),
    "no sequential": lambda path: write_run(path, list(cells(decoders=("sejd",), **BATCH))),
    "all failed": lambda path: write_failed(path),
    "no environment": lambda path: few(path, only=("timings",), manifest={"environment": None, "matrix": None}),
    "broken images": lambda path: broken_images(few(path, images=True)),
    "unknown decoders": lambda path: few(
        path, list(cells(decoders=("sequential", "my <b>new<b> one"), **BATCH)), only=("timings", "layers")
    ),
    "tau zero": lambda path: few(
        path, list(cells(batches=(4,), taus=(0.5, 0.0))), only=("timings", "quality"), residuals=short(0.0)
    ),
    "residuals without errors": lambda path: few(path, residuals=blank(list(cells(**BATCH)))),
    "layers without times": lambda path: few(path, layers=untimed(list(cells(**BATCH)))),
}


def short(tau):
    return list(residual_rows(list(cells(batches=(4,), taus=(tau,))), iterations_per_layer=3))


def write_failed(path):
    found = list(cells(**BATCH))
    failed = {"status": "failed", "error": "it did not end well"}
    rows = {"timings": list(timing_rows(found, status="failed"))}
    identity = [{name: cell[name] for name in ("cell_id", "cell_key")} for cell in found]
    rows["quality"] = [cell | failed for cell in identity]
    rows["memory"] = [cell | failed | {"method": "rss"} for cell in identity]
    return write_run(path, found, only=(), images=False, **rows)


def broken_images(path):
    for file in (path / "samples").glob("*.png"):
        file.write_bytes(b"no image")
    return path


def blank(found):
    empty = {name: None for name in ("residual", "error_inf", "error_rms")}
    return [row | empty | {f"error_rms_p{level}": None for level in (10, 50, 90)} for row in residual_rows(found)]


def untimed(found):
    return [row | {"wall_s": None} for row in layer_rows(found)]


@pytest.mark.parametrize("kind", ODD_RUNS)
def test_what_cannot_be_shown_is_left_out_with_its_reason(tmp_path, kind, capsys):
    page = page_of(ODD_RUNS[kind](tmp_path / "run"))
    assert "That is a defect" not in page, capsys.readouterr().err
    sections = dict(re.findall(r'<section id="([^"]+)"[^>]*>(.*?)</section>', page, flags=re.DOTALL))
    for entry in (*PLOTS, *TABLES):
        content = sections.get(entry.name, "")
        assert ("<svg" in content or "<tbody>" in content) != (entry.name in left_out(page)), entry.name
    told = re.sub(r"<(svg|script).*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(nan|None|NaT)\b", told), kind


def test_reasons_say_what_is_missing(tmp_path):
    reasons = left_out(page_of(ODD_RUNS["timings alone"](tmp_path / "run")))
    assert "quality" in reasons["speed-against-deviation"]
    assert "<code>residuals</code>" in reasons["convergence"]


def test_one_round_has_no_interval_and_the_page_says_so(tmp_path):
    page = page_of(ODD_RUNS["one round"](tmp_path / "run"))
    assert "1 round only" in page
    assert "no interval, too few rounds" in page
    assert pd.read_csv(tmp_path / "run" / "figures" / "table1.csv")[["low", "high"]].isna().all(axis=None)


def test_names_from_tables_are_text_not_markup(tmp_path):
    page = page_of(ODD_RUNS["unknown decoders"](tmp_path / "run"))
    assert "<b>new<b>" not in page and "my &lt;b&gt;new&lt;b&gt; one" in page


def test_runs_of_several_versions_are_one_report(tmp_path):
    few(tmp_path / "old", list(cells(code="v1", **BATCH)), only=("timings",))
    few(tmp_path / "new", list(cells(code="v2", **BATCH)), only=("timings",))
    page = build([tmp_path / "old", tmp_path / "new"], out=tmp_path / "both").read_text()
    assert "2 versions of the code" in page and "That is a defect" not in page


def test_sentences_follow_the_numbers(tmp_path):
    """The same page from a run in which another decoder wins says so."""
    found = list(cells(**BATCH))
    slow = [
        row | {"wall_s": row["wall_s"] / (20 if row["decoder"] == "gs-jacobi" else 1)} for row in timing_rows(found)
    ]
    usual = page_of(few(tmp_path / "a", found, only=("timings", "quality")))
    other = page_of(few(tmp_path / "b", found, only=("quality",), timings=slow))
    best = re.compile(r"The fastest valid cell is ([a-z-]+)")
    assert best.search(usual)[1] == "sejd" and deviation(found[2]) < 0.15
    assert best.search(other)[1] == "gs-jacobi"


def test_bad_input_is_a_sentence(tmp_path):
    with pytest.raises(StoreError, match="no run folder"):
        build([tmp_path / "nowhere"])
    with pytest.raises(HarnessError, match="at least one"):
        build([])
    run = write_run(tmp_path / "run", list(cells(**BATCH)), images=False)
    with pytest.raises(HarnessError, match="did you mean 'svg'"):
        build([run], formats=["svgg"])
    part = next((run / "timings.parquet").glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StoreError, match="damaged"):
        build([run])


def test_both_commands_reach_the_same_report(tmp_path):
    run = write_run(tmp_path / "run", [], only=(), images=False)
    done = subprocess.run([sys.executable, "-m", "analysis", str(run)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(run / "report.html") in done.stdout
    command = [sys.executable, "-m", "harness.cli", "report", str(tmp_path / "no")]
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and bad.stderr.startswith("error: ")


def test_analysis_never_imports_torch():
    code = "import sys, analysis.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_templates_and_published_figures_are_package_data():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["analysis"]
    assert {"report/templates/*", "published.csv"} <= set(patterns)


HOSTILE = [
    "$x^2$ ~a_b^{c}\\ &#%",
    "a|b\nc <script>alert(1)</script>",
    "x" * 112,
    "数字 🙂",
    "_hidden",
    "`a` *b* [l](x)",
]


def labelled(labels, kind="sejd", **changed):
    """Cells of sequential and ujd, and for each label those of a decoder."""
    found = list(cells(decoders=("sequential", "ujd"), **BATCH))
    for number, label in enumerate(labels):
        found += [
            cell | {"label": label, "cell_id": f"{cell['cell_id']}{number}", "cell_key": f"{cell['cell_key']}{number}"}
            | changed
            for cell in cells(decoders=(kind,), **BATCH)
        ]  # fmt: skip
    return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("hostile") / "run", labelled(HOSTILE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of missing glyphs, and of labels that a legend leaves out
        return folder, page_of(folder, formats=("pdf", "svg"))


def test_labels_of_any_characters_are_drawn_and_written(hostile):
    folder, page = hostile
    assert "That is a defect" not in page and "<script>alert" not in page
    for label in HOSTILE:
        assert escape(label).split("\n")[0] in page
    latex = (folder / "figures" / "table1.tex").read_text(encoding="utf-8")
    body = latex.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert all(line.count("&") - line.count(r"\&") == 13 and line.endswith(r"\\") for line in body)
    assert r"\$x\textasciicircum{}2\$ \textasciitilde{}a\_b\textasciicircum{}\{c\}\textbackslash{} \&\#\%" in latex
    markdown = (folder / "figures" / "table1.md").read_text(encoding="utf-8")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(labelled(HOSTILE))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {15}
    assert r"a\|b c &lt;script>" in markdown and r"\`a\` \*b\* [l\](x)" in markdown and r"\$x^2\$" in markdown


def test_fonts_are_true_type_in_pdf_and_text_in_svg(hostile):
    figures = hostile[0] / "figures"
    pdf = (figures / "iterations-per-layer.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    svg = (figures / "iterations-per-layer.svg").read_text(encoding="utf-8")
    assert "<text" in svg and "FPE" in svg


def test_flows_whose_names_make_the_same_file_name_have_files_of_their_own(tmp_path):
    found = [cell for name in ("a b", "a-b", "数", "字") for cell in cells(dataset=name, **BATCH)]
    page_of(few(tmp_path / "run", found, only=("layers",)))
    assert len(list((tmp_path / "run" / "figures").glob("iterations-per-layer-*.png"))) == 4


@pytest.mark.parametrize("setting", ["backend of a notebook", "unknown backend and matplotlibrc"])
def test_the_users_matplotlib_settings_change_nothing(full, tmp_path, setting):
    folder, _ = full
    rc = tmp_path / "matplotlibrc"
    rc.write_text("text.usetex: True\nfont.size: 30\nfigure.dpi: 40\naxes.prop_cycle: cycler('color', ['r'])\n")
    environment = {
        "backend of a notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        "unknown backend and matplotlibrc": {"MPLBACKEND": "nothing-like-it", "MATPLOTLIBRC": str(rc)},
    }[setting]
    command = [sys.executable, "-m", "analysis", str(folder), "--out", str(tmp_path), "--only", "convergence-order"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert (done.returncode, done.stderr) == (0, "")
    name = "figures/convergence-order.png"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("width", WIDTHS)
def test_one_figure_of_a_journals_width(full, tmp_path, width):
    made = build([full[0]], tmp_path, ["svg"], width, ["samples", "iterations-per-layer"])
    assert made == tmp_path / "figures" and not (tmp_path / "report.html").exists()
    assert {file.stem for file in made.iterdir()} == {"samples", "iterations-per-layer"}
    for file in made.glob("*.svg"):
        assert f'width="{72 * WIDTHS[width]:g}pt"' in file.read_text(encoding="utf-8")


def test_a_figure_that_is_not_there_is_told_in_a_sentence(full, tmp_path):
    with pytest.raises(HarnessError, match="did you mean 'samples'"):
        build([full[0]], tmp_path, only=["sample"])
    with pytest.raises(HarnessError, match="cannot show 'jacobian-powers': the runs hold no table"):
        build([full[0]], tmp_path, only=["jacobian-powers"])


def test_a_decoder_of_ones_own_is_set_against_the_baselines(tmp_path):
    found = labelled(["mine"], "gs-jacobi", decoder="my.module:Mine", code_version="mine")
    page = page_of(few(tmp_path / "run", found, only=("timings", "quality")))
    (sentence,) = re.findall(r'<p class="finding">(mine against the baselines[^<]*)</p>', page)
    assert "on digits, batch 4: mine tau 0.5" in sentence and "as fast as sequential (" in sentence
    assert "as fast as ujd tau 0.5 (" in sentence and "Its deviation is 0.01" in sentence
    assert "versions of the code" not in page, "a decoder of one's own is no other version of ours"


def test_what_was_not_measured_is_no_verdict(tmp_path):
    alone = page_of(few(tmp_path / "alone", list(cells(decoders=("sejd",), **BATCH)), only=("timings", "quality")))
    assert "sequential was not timed, so there is no speed-up" in alone
    rounds = list(timing_rows(list(cells(**BATCH)), rounds=3))
    short = page_of(few(tmp_path / "short", only=("quality",), timings=rounds))
    assert "3 cells were timed, all in too few rounds for an interval: none is called faster." in short


def test_all_rows_are_shown_and_what_is_absent_is_one_collapsed_note(full):
    _, page = full
    assert "max-height" not in page and page.count('id="absent"') == 1 and "<details><summary>Left out: " in page
    told = re.sub(r"<(svg|script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert "`" not in told
