"""Texts of studies: numbers come from tables and verdicts from numbers, and no claim is without one."""

import re
from pathlib import Path

import pandas as pd
import pytest
from synthetic import cells, deviation, write_run

from analysis.load import load
from analysis.quality import UNDECIDED
from analysis.studies.base import Finding
from analysis.studies.breaks import findings as breaks
from analysis.studies.claims import checked, claims, measured, read_findings, rows, score, verdict, write_findings
from analysis.studies.partial import findings as partial
from analysis.studies.reconstruction import findings as reconstruction
from analysis.studies.render import claim_table, render_study
from analysis.studies.stored import PROVENANCE, Comparison, compare, origin, provenance
from analysis.studies.tau import findings as tau
from analysis.studies.training import findings as training
from harness.errors import HarnessError
from harness.measure.studies import studies

ROOT = Path(__file__).parents[2]
TEXTS = ROOT / "analysis" / "studies"
RESULTS = ROOT / "results" / "studies"

REFERENCE = re.compile(
    r"(Eqs?\.|Eq|Props?\.|Figs?\.|Figures?|Tables?|Secs?\.|Section|Appendix|arXiv)\s+[A-Z]?\d[\d.]*|\bE\.\d"
    r"|\b95 % (confidence )?interval|[A-Za-z] = \d[\d.]*"
)
"""Places in the paper, the level of every interval, and settings such as T = 3.0."""

MEASURED = re.compile(
    r"\d\s?%|\d\s?×|\d\s?x\b(?!\s\d)|\d\.\d+\b(?! [A-Z]\b)"
    r"|(?<![−+-] )\d (s|ms|seconds|[kMG]i?B|bytes|iterations|times)\b"
)
"""What a measurement looks like: shares, factors, decimals but those of formulas (4.75 L D), numbers with a unit."""


def literal(template: str) -> str:
    """What a template says by itself: without its expressions, statements, comments and code spans."""
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", " ", template, flags=re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text)


def typed(template: str) -> list[str]:
    """Lines with what looks like a measurement and stands in the template itself."""
    lines = REFERENCE.sub(" ", literal(template)).splitlines()
    return [line for line in lines if MEASURED.search(line)]


@pytest.mark.parametrize("path", sorted(TEXTS.rglob("*.md.j2")), ids=lambda path: path.parent.name)
def test_no_measurement_is_typed_in_a_text(path):
    assert typed(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("claim", ["3.6x faster", "5 % worse", "0.042 RMSE", "it takes 7 iterations", "12 s", "2×"])
def test_a_typed_measurement_would_be_found(claim):
    assert typed(f"The result: {claim}.") and not typed(
        "{{ x }} in layer 2 of 8 x 8 sites at T = 3.0, see Fig. 5, `7 s`"
    )


def test_every_study_has_a_text_and_every_text_a_study():
    texts = {path.parent.name.replace("_", "-") for path in TEXTS.glob("*/text.md.j2")}
    assert texts == set(studies())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two flows at five taus, their deviation in proportion to tau and FID 10 (1 + deviation)."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "digits", list(cells(decoders=("sequential", "ujd", "sejd"), batches=(1, 16))))
    write_run(folder / "cats", list(cells(decoders=("sequential", "ujd", "sejd"), dataset="afhq-cat", batches=(16,))))
    return folder


@pytest.fixture(scope="module")
def found(sweep):
    return {module.__name__.split(".")[2]: module.findings(load([sweep])) for module in (tau, breaks)}


def by_claim(findings, claim):
    return {one.flow: one for one in findings.claims if one.claim == claim}


def test_tau_tells_what_the_run_is_made_of(found):
    table = found["tau"].tables["sensitivity"].set_index(["flow", "series", "tau"])
    for series, value in (("sejd", 0.5), ("ujd", 2.0)):
        expected = deviation({"decoder": series, "tau": value})
        row = table.loc[("digits", series, value)]
        assert row["fid_rise"] == pytest.approx(expected)
        assert row["deviation_rmse"] == pytest.approx(expected)
    exponents = found["tau"].values["exponents"]
    assert exponents["exponent"].tolist() == pytest.approx([1.0] * 4)
    largest = found["tau"].values["within"].set_index(["flow", "series"])["largest_tau"]
    # 5 % are reached by ujd's 0.16 tau at 0.31, by sejd's 0.08 tau at 0.62.
    assert (largest["digits", "ujd"], largest["digits", "sejd"]) == (0.3, 0.5)


def test_verdicts_follow_from_the_numbers(found):
    quality = by_claim(found["tau"], "quality-kept")["digits"]
    assert quality.agrees and "+4.0%" in quality.measured and not quality.timed
    speed = by_claim(found["tau"], "speedup-sejd")["digits, batch 16"]
    assert speed.agrees and speed.timed
    assert by_claim(found["tau"], "few-iterations")["digits"].agrees, "4 and round(0.6) more in the later layers"
    slower = by_claim(found["tau"], "speedup-ujd")["digits, batch 1"]
    assert slower.agrees and slower.timed, "2.5 times as fast as sequential, SeJD 4 times"
    assert by_claim(found["tau"], "ujd-loses")["afhq-cat, batch 16"].agrees is None, "L = 64 says nothing of L = 1024"
    held = by_claim(found["breaks"], "break-fid")["digits"]
    assert not held.agrees and held.measured.startswith("broken in 2 of 12 cells"), "ujd at 0.5, at both batch sizes"
    assert by_claim(found["breaks"], "break-residuals")["digits"].agrees


@pytest.mark.parametrize(
    ("share", "agrees"), [(0.61, True), (0.59, UNDECIDED), (0.5, UNDECIDED), (0.41, UNDECIDED), (0.39, False)]
)
def test_the_share_of_one_decode_says_nothing_near_its_limit(sweep, share, agrees):
    runs = load([sweep])
    layers = runs.tables["layers"]
    others = (1 - share) / (layers["layer"].max() - 1)
    layers["wall_s"] = others
    layers.loc[layers["layer"] == 1, "wall_s"] = share
    found = by_claim(tau.findings(runs), "first-layer-share")
    assert {one.agrees for one in found.values()} == {agrees}


@pytest.mark.parametrize(("scale", "agrees"), [(0.01, True), (0.1, False)])
def test_reconstruction_is_compared_with_the_papers_largest(sweep, scale, agrees):
    runs = load([sweep])
    taus = runs.cells.set_index("cell_id")["tau"].fillna(0)
    runs.tables["quality"]["reconstruction_mse"] = scale * runs.tables["quality"]["cell_id"].map(taus) ** 2
    result = reconstruction.findings(runs)  # 0.25 times the scale at tau = 0.5, and the paper has 0.00636 at most
    assert {one.flow: one.agrees for one in result.claims} == {"digits": agrees, "afhq-cat": agrees}
    assert f"{0.25 * scale:.3g} at 0.5" in result.claims[0].measured
    assert result.tables["reconstruction"]["tau"].nunique() == 5


def test_snapshots_are_ordered_by_their_share_of_the_training():
    names = [f"cifar10-jpeg-{share}pct.safetensors" for share in (100, 5, 25, 1)]
    assert sorted(map(partial.trained, names)) == [0.01, 0.05, 0.25, 1.0]


def _trained(*rows):
    """Flows of one dataset as (training, seed, bits, passes)."""
    names = ["training", "seed", "bits_per_dim", "passes"]
    return pd.DataFrame(rows, columns=names).assign(dataset="digits").reindex(
        columns=[*training.PER_FLOW, *training.MEASURED]
    )  # fmt: skip


def test_trainings_are_compared_with_the_published_one_of_their_seed():
    flows = _trained(
        ("published", 0, 2.5, 4.0), ("published", 1, 2.7, 5.0), ("decode-1", 0, 2.6, 3.0), ("decode-1", 1, 2.8, 3.5),
        ("drop-1", 1, 2.9, 4.5), ("turn-2", 0, 2.4, 6.0),
    )  # fmt: skip
    table = training._trainings(flows)
    assert table["training"].tolist()[0] == "published"
    row = table.set_index("training")
    assert row["given_up"].to_dict() == pytest.approx({"published": 0, "decode-1": 0.1, "drop-1": 0.2, "turn-2": -0.1})
    assert row.loc["decode-1", ["saved", "saved_low", "saved_high"]].tolist() == pytest.approx([1.25, 1.0, 1.5])
    assert row["on_frontier"].to_dict() == {"published": "yes", "decode-1": "yes", "drop-1": "no", "turn-2": "yes"}
    claim = training._claim("digits", table)
    assert claim.agrees and "decode-1 gives up 0.1 bits/dim and saves 1.25 (2 seeds)" in claim.measured
    assert "drop-1 gives up 0.2 bits/dim and saves 0.5 (1 seed)" in claim.measured and "turn-2" not in claim.measured
    nothing = _trained(
        ("published", 0, 2.5, 4.0), ("published", 1, 2.5, 4.0), ("turn-2", 0, 2.4, 5.0), ("turn-2", 1, 2.4, 3.0)
    )
    claim = training._claim("digits", training._trainings(nothing))
    assert claim.agrees is False and "none of turn-2 saves any" in claim.measured, "not with every seed"
    assert training._claim("digits", training._trainings(flows[flows["seed"] == 0])).agrees is None, "one seed"
    flows.loc[flows["training"].eq("decode-1") & flows["seed"].eq(1), "passes"] = float("nan")
    table = training._trainings(flows)
    assert table.set_index("training").loc["decode-1", ["passes", "on_frontier"]].tolist()[1] == "no"
    assert "decode-1" not in training._claim("digits", table).measured, "one of its seeds stays too far away"


def test_a_text_is_written_from_its_tables(sweep, tmp_path):
    results = tmp_path / "results"
    kept, gone = results / "tau" / "flows" / "a.safetensors", results / "tau" / "old.csv"
    kept.parent.mkdir(parents=True)
    for file in (kept, gone):
        file.touch()
    assert render_study(TEXTS / "tau", "A title", "fast", [sweep], tmp_path / "new", results) == Comparison()
    assert kept.exists() and not gone.exists(), "what a study wrote before goes, what it did not write stays"
    text = (results / "tau.md").read_text(encoding="utf-8")
    assert "# A title" in text
    for row in pd.read_csv(results / "tau" / "sensitivity.csv").itertuples():
        assert f"| {row.flow} | {row.series} |" in text
    assert "FID stays within 5 % of sequential's up to tau = 0.3" in text
    for link in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (results / link).stat().st_size > 0
    made = provenance(load([sweep]).runs)
    assert text.endswith(f"\n{origin(made)}\n") and set(made["checkpoint"]) == {"digits", "afhq-cat"}
    assert pd.read_csv(results / "tau" / PROVENANCE, dtype=str).equals(made)
    again = tmp_path / "again"
    assert render_study(TEXTS / "tau", "A title", "fast", [sweep], again, results, check=True) == Comparison()
    assert compare(again / "tau", results / "tau") == Comparison()


@pytest.mark.parametrize("check", [False, True])
def test_what_is_stored_of_a_flow_that_is_not_here_stays_and_is_told(sweep, tmp_path, check):
    results, both = tmp_path / "results", write_run(tmp_path / "large", list(cells(dataset="zebra", batches=(4,))))
    render_study(TEXTS / "tau", "A title", "fast", [sweep, both], tmp_path / "new", results)
    stored = {path: path.read_bytes() for path in results.rglob("*.*") if path.is_file()}
    again = render_study(TEXTS / "tau", "A title", "fast", [sweep], tmp_path / "again", results, check, ["zebra", "x"])
    assert again.differing == () and "'tau' stays: it rests on zebra too" in again.kept[0]
    assert {path: path.read_bytes() for path in results.rglob("*.*") if path.is_file()} == stored
    assert "zebra" not in (tmp_path / "again" / "tau.md").read_text(encoding="utf-8")


def test_table_a3_stands_beside_flows_of_its_layers_and_tokens():
    shared = {"flow": "mine", "dataset": "cifar10-jpeg", "decoder": "sejd", "tau": 0.5, "batch_size": 4}
    shared |= {"mode": "jacobi", "num_layers": 6, "num_tokens": 256}
    layers = pd.DataFrame([shared | {"layer": layer, "iterations": layer} for layer in range(1, 7)])
    assert tau.table_a3(layers)["published"].tolist() == [255, 53.9, 4.9, 4.0, 3.0, 6.1]
    assert tau.table_a3(layers.assign(num_tokens=64)).empty and tau.table_a3(layers.assign(dataset="digits")).empty


FINDING = Finding("finite", "digits", "it is exact", True, "the error is 0")


def test_findings_survive_their_files(tmp_path):
    timed = Finding("finite", "cats", "it | is", None, "no clock", timed=True)
    (tmp_path / "convergence").mkdir()
    write_findings([FINDING, timed], tmp_path / "convergence")
    assert [one for _, one in read_findings(tmp_path)] == [timed, FINDING]
    table = claim_table(tmp_path)
    assert "**agree**" in table and ": it | is" in table


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [([True, True], "agree"), ([False], "disagree"), ([True, False], "mixed"), ([None], "not measurable here"),
     ([True, None], "agree"), ([], "not run"), (["undecided", None], "undecided"), (["undecided", True], "mixed")],
)  # fmt: skip
def test_a_verdict_sums_up_the_flows(verdicts, word):
    found = [("s", Finding("finite", "digits", "m", verdict, "c")) for verdict in verdicts]
    assert {row.claim.id: row.verdict for row in rows(found)}["finite"] == word


def test_a_finding_of_no_claim_or_without_words_is_refused():
    with pytest.raises(HarnessError, match="did you mean 'finite'"):
        checked([Finding("finit", "digits", "m", True, "c")])
    with pytest.raises(HarnessError, match="'finite' leaves criterion empty"):
        checked([Finding("finite", "digits", "m", True, "")])


def test_the_stored_claim_table_is_made_from_the_stored_findings():
    stored = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert stored == claim_table(RESULTS)
    lines = [line for line in stored.splitlines() if line.startswith("| ")][1:]
    found = rows(read_findings(RESULTS))
    assert [re.search(r"\[([^]]*)\]\(#([^)]*)\) \|$", line).groups() for line in lines] == [
        (row.verdict, row.claim.id) for row in found
    ]
    assert set(re.findall(r"^### (.*)$", stored, re.M)) == {row.claim.id for row in found} >= set(claims())
    assert stored.splitlines()[2] == f"**{score(found)}**", "it opens with the score"


def test_the_score_counts_every_claim_once():
    found = rows(
        [("s", Finding("finite", "digits", "m", True, "c")), ("s", Finding("nilpotent", "d", "m", False, "c"))]
    )
    numbers = [int(number) for number in re.findall(r"\d+", score(found))]
    assert sum(numbers) == 2 * len(claims())  # both totals, and the parts that make them up
    assert "1 agree" in score(found)


def test_a_claim_without_a_verdict_waits_for_a_study_that_is_not_stored():
    """Once every study is stored, none is left."""
    waiting = [name for name in studies() if not (RESULTS / f"{name}.md").is_file()]
    left = {row.claim.id for row in rows(read_findings(RESULTS)) if row.verdict == "not run"}
    assert not left or waiting, "`make studies` measures them"


LITTLE = {
    "discrete": "`harness probe drafts` writes it",
    "memory": "no rows in memory_scaling, which it reads",
    "which_layers": "no rows in layer_sets, which it reads",
    "ujd_loss": "no rows in couplings",
    "convergence": "`harness probe convergence` writes it",
    "tau": "no rows in quality, which it reads",
    "redundancy": "`harness probe redundancy` writes it",
    "training": "no rows in likelihoods, ",
}


@pytest.mark.parametrize("name", sorted(path.parent.name for path in TEXTS.glob("*/text.md.j2")))
@pytest.mark.parametrize("tables", [("timings", "layers", "residuals"), ()], ids=["no quality and no probe", "no rows"])
def test_a_study_over_too_little_ends_in_its_text_or_in_a_sentence(tmp_path, name, tables):
    found = list(cells(decoders=("sequential", "ujd", "sejd"), batches=(16,))) if tables else []
    run = write_run(tmp_path / "run", found, only=tables, images=False)
    try:
        render_study(TEXTS / name, "A title", "fast", [run], tmp_path / "new", tmp_path / "results")
    except HarnessError as error:
        assert str(error).startswith(f"study '{name.replace('_', '-')}' cannot be told from these runs: ")
        assert not tables or LITTLE[name] in str(error)
        assert not (tmp_path / "results").exists()
    else:
        assert name not in LITTLE and (tmp_path / "results" / f"{name.replace('_', '-')}.md").is_file()


def test_redundancy_is_told_without_fid_and_masked_flows_of_other_flows(sweep, tmp_path):
    for name in ("redundancy", "masked_flows"):
        assert render_study(TEXTS / name, "A title", "fast", [sweep], tmp_path / "new", tmp_path) == Comparison()


def test_names_of_flows_are_no_markup_in_the_claim_table():
    assert r"\`x\` \*y\*" in measured("s", Finding("finite", "`x` *y*", "m", True, "c"), "agree")


def test_the_stored_pages_tell_the_stored_verdicts():
    for study in ("convergence", "redundancy"):
        page = (RESULTS / f"{study}.md").read_text(encoding="utf-8")
        own = [finding for name, finding in read_findings(RESULTS) if name == study]
        lines = [f"{one.measured}. **{verdict(one).capitalize()}** ({one.criterion})." for one in own]
        assert own and all(line in page for line in lines)
    assert verdict(Finding("finite", "digits", "m", "undecided", "c")) == "undecided"
