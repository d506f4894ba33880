"""Comparisons of runs whose truth is known: simulated rounds with noise, drift and outliers."""

import json
import re
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from analysis.compare import TOLERANCE, VERDICTS, compare_runs
from analysis.compare.render import FORMATS, print_comparison
from analysis.compare.verdicts import ALPHA, judge
from analysis.statistics import detectable, relative_times, shift_of_rounds
from harness.errors import HarnessError
from harness.runs.environment import fingerprint
from harness.runs.store import Run, RunStore

ROUNDS = 20
SEQUENTIAL_S, ENCODE_S = 1.0, 0.05
HERE = {
    "machine": "x86_64", "cpu": "a processor", "logical_cores": 2, "threads": 2, "device": "cpu", "gpu": None,
    "cuda": None, "packages": {"torch": "2.0"},
}  # fmt: skip
FACTS = {
    "dataset": "digits",
    "checkpoint": "digits",
    "options": "{}",
    "seed": 0,
    "num_tokens": 64,
    "num_layers": 2,
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
}


@dataclass
class Simulated:
    """One cell of a simulated run."""

    decoder: str
    wall_s: float
    tau: float | None = 0.5
    batch_size: int = 16
    iterations: tuple = (5, 3)
    depth: tuple | None = None
    cache_bytes: int = 1000
    deviation: float = 0.05
    fid: float = 3.0
    kid: float = 0.01
    nonfinite: int = 0
    error: str | None = None


def plain(**changes):
    """Sequential, SeJD and UJD."""
    return [
        Simulated("sequential", SEQUENTIAL_S, None, iterations=(63, 63), deviation=0.0),
        Simulated("ujd", 0.4),
        Simulated(**{"decoder": "sejd", "wall_s": 0.25} | changes),
    ]


def simulate(path, cells, seed=0, rounds=ROUNDS, machine=None, code="one", noise=0.04, load=()):
    """A run folder: per measurement lognormal noise and rare outliers, per round a drift that pairing cancels.

    In the rounds of `load` others keep processors busy: it slows every cell by a factor of its own, as it does.
    """
    rng = np.random.default_rng(seed)
    environment = HERE | (machine or {})
    manifest = {
        "environment": environment | {"fingerprint": fingerprint(environment)},
        "sessions": {"s": {"environment": environment}},
        "matrix": {"quality": {"max_deviation": 0.15, "max_fid_increase": 0.05}},
    }
    busy = np.isin(np.arange(rounds), load)
    drift = np.exp(rng.normal(0, 0.15, rounds).cumsum() * 0.3)
    encode = ENCODE_S * drift * np.exp(rng.normal(0, noise, rounds))
    tables = {name: [] for name in ("cells", "timings", "layers", "quality", "memory")}
    tables["devices"] = [
        {"group_id": group, "session": "s", "round": i, "foreign_cpus": 1.4 if busy[i] else 0.05}
        for group in sorted({f"batch {cell.batch_size}" for cell in cells})
        for i in range(rounds)
    ]
    with RunStore.create(path, manifest) as store:
        for cell in cells:
            key = f"{cell.decoder}-{cell.tau}-{cell.batch_size}"
            identity = {"cell_id": f"{key}-{code}", "cell_key": key}
            facts = (
                identity
                | FACTS
                | {
                    "group_id": f"batch {cell.batch_size}",
                    "decoder": cell.decoder,
                    "label": cell.decoder,
                    "tau": cell.tau,
                    "batch_size": cell.batch_size,
                }
            )
            outcome = {"status": "failed" if cell.error else "ok", "error": cell.error}
            tables["cells"].append(facts | {"token_dim": 1, "checkpoint_digest": "d", "code_version": code})
            outliers = np.where(rng.random(rounds) < 0.02, 1.5, 1.0)
            walls = cell.wall_s * drift * np.exp(rng.normal(0, noise, rounds)) * outliers
            if load:  # sequential decoding suffers most, each round differently
                walls *= np.where(busy, rng.uniform(1.5, 4) * rng.uniform(0.8, 1.25, rounds), 1.0)
            timings = [
                facts
                | {"session": "s", "round": i, "position": 0}
                | ({} if cell.error else {"wall_s": wall, "encode_s": e, "forward_ratio": wall / e})
                | outcome
                for i, (wall, e) in enumerate(zip(walls.tolist(), encode.tolist(), strict=True))
            ]
            tables["timings"] += timings[:1] if cell.error else timings
            if cell.error:
                continue
            tables["layers"] += [
                identity
                | {"layer": i + 1, "block": 1 - i, "mode": "jacobi", "iterations": count, "converged": True}
                | {"token_evaluations": count * 63.0, "depth": (cell.depth or cell.iterations)[i]}
                for i, count in enumerate(cell.iterations)
            ]
            figures = {"deviation_rmse": cell.deviation, "fid": cell.fid, "kid": cell.kid, "kid_std": 0.001}
            figures |= {"deviation_low": 0.95 * cell.deviation, "deviation_high": 1.05 * cell.deviation}
            figures |= {"fid_rise_low": cell.fid / cells[0].fid - 1.01, "fid_rise_high": cell.fid / cells[0].fid - 0.99}
            counts = {"num_samples": 960, "num_reference": 1438, "nonfinite_samples": cell.nonfinite}
            tables["quality"].append(identity | figures | counts | outcome | {"fid_features": "digits"})
            tables["memory"].append(identity | {"cache_bytes": cell.cache_bytes, "method": "rss"} | outcome)
        for table, rows in tables.items():
            store.append(table, rows)
    return store.run


@pytest.fixture
def pair(tmp_path):
    """Compare plain cells with other cells; options go to the new run."""

    def compare(cells, base=None, tolerance=0.05, **options):
        before = simulate(tmp_path / "base", base or plain(), seed=1)
        return compare_runs(before, simulate(tmp_path / "new", cells, **{"seed": 2} | options), tolerance)

    return compare


def of(comparison, decoder):
    return next(cell for cell in comparison.verdicts if cell.description["decoder"] == decoder)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rounds", [1, 3, 7, 20])
def test_a_run_against_itself_is_the_same_everywhere(tmp_path, seed, rounds):
    run = simulate(tmp_path / "run", plain(), seed, rounds, noise=0.3)
    comparison = compare_runs(run, run)
    assert {cell.verdict for cell in comparison.verdicts} == {"same"}
    assert not comparison.regressed
    assert all(cell.shift is None or cell.shift.factor == 1 for cell in comparison.verdicts)


@pytest.mark.parametrize(("wall_s", "verdict"), [(0.25, "same"), (0.1, "faster"), (0.5, "slower")])
def test_what_became_of_a_cell_and_whether_it_is_valid_are_told_apart(pair, wall_s, verdict):
    cell = of(pair(plain(deviation=0.2, wall_s=wall_s), plain(deviation=0.2, wall_s=0.25)), "sejd")
    assert (cell.verdict, cell.state) == (verdict, "invalid in both")
    assert cell.regressed_by == ["time"] * (verdict == "slower")
    assert cell.row()[0] == f"{verdict}; invalid in both" + " !" * (verdict == "slower")


def test_ten_percent_slower_is_found_and_nothing_else_is(tmp_path, noise=0.05):
    """Found in at least 19 of 20 tries at 20 rounds, where fewer than 5 % of 60 unchanged cells get another verdict."""
    found = false = 0
    for attempt in range(20):
        base, new = (
            simulate(tmp_path / f"{attempt} {wall_s}", [*plain(), Simulated("fitted", wall_s)], seed, noise=noise)
            for wall_s, seed in ((0.25, 2 * attempt), (0.25 * 1.1, 2 * attempt + 1))
        )
        slower, *unchanged = sorted(compare_runs(base, new).verdicts, key=lambda one: one.description["decoder"])
        found += slower.verdict == "slower"
        false += sum(cell.verdict in ("slower", "faster") for cell in unchanged)
    assert found >= 19
    assert false < 3


@pytest.mark.parametrize("small_calls", [0.75, 1.3])
def test_a_machine_that_became_faster_at_small_calls_alone_makes_no_verdict(tmp_path, small_calls):
    """Sequential moves against the forward pass, the others between the two; what really is slower is still found."""
    told, found = [], []
    for attempt in range(10):
        base, new = (
            simulate(
                tmp_path / f"{attempt} {change}",
                [Simulated("sequential", SEQUENTIAL_S * change, None, iterations=(63, 63), deviation=0.0)]
                + [Simulated("ujd", 0.4 * change**0.3), Simulated("sejd", 0.25 * change**0.7)]
                + [Simulated("fitted", 0.1 * change**0.5 * slower)],
                seed, rounds=7,
            )
            for change, slower, seed in ((1.0, 1.0, 2 * attempt), (small_calls, 1.5, 2 * attempt + 1))
        )  # fmt: skip
        verdicts = {cell.description["decoder"]: cell for cell in compare_runs(base, new).verdicts}
        found.append(verdicts.pop("fitted").verdict)
        told += [cell for name, cell in verdicts.items() if name != "sequential"]
    assert found.count("slower") >= 9
    assert sum(cell.verdict in ("slower", "faster") for cell in told) <= 1
    assert any("measure both at once" in cell.evidence[0] for cell in told)


def test_sequential_is_not_faster_because_the_forward_pass_is_slower(tmp_path, monkeypatch):
    base = simulate(tmp_path / "base", plain(), rounds=7)
    monkeypatch.setitem(globals(), "ENCODE_S", 1.4 * ENCODE_S)
    sequential = of(compare_runs(base, simulate(tmp_path / "new", plain(), rounds=7)), "sequential")
    assert sequential.verdict == "ambiguous" and "but +0.0% in seconds" in sequential.evidence[0]
    quick = [Simulated("sequential", 0.7 * SEQUENTIAL_S, None, iterations=(63, 63), deviation=0.0), *plain()[1:]]
    assert of(compare_runs(base, simulate(tmp_path / "both", quick, rounds=7)), "sequential").verdict == "faster"


def judged(rng, factor, noise=0.05, forward_noise=0.05, rounds=ROUNDS):
    """The verdict on a cell whose time changed by a factor, and the slow-down that is found at such noise."""
    before, after = (
        pd.DataFrame(
            {
                name: np.exp(rng.normal(0, sigma, rounds)) * np.where(rng.random(rounds) < rare, 1.5, 1.0) * scale
                for name, sigma, rare, scale in (
                    ("wall_s", noise, 0.02, scale),
                    ("reference_s", noise, 0.02, 4.0),
                    ("encode_s", forward_noise, 0.0, 0.1),
                )
            }
        ).mul(rng.uniform(1, 2, rounds), axis=0)
        for scale in (1.0, factor)
    )
    base, new = relative_times([before, after])
    shift = shift_of_rounds(new, base, 1 - ALPHA)
    return judge(shift.factor, shift.p_value, TOLERANCE), detectable(shift, TOLERANCE, 1 - ALPHA)


@pytest.mark.parametrize("rounds", [5, 10, 20])
@pytest.mark.parametrize("forward_noise", [0.03, 0.05, 0.1])
def test_an_unchanged_cell_gets_another_verdict_in_fewer_than_one_of_twenty(rounds, forward_noise):
    rng = np.random.default_rng(1)
    verdicts = [judged(rng, 1.0, forward_noise=forward_noise, rounds=rounds)[0] for _ in range(300)]
    assert np.mean([verdict in ("slower", "faster") for verdict in verdicts]) < 0.05


def test_ten_percent_slower_is_found_in_nineteen_of_twenty():
    rng = np.random.default_rng(2)
    assert np.mean([judged(rng, 1.1)[0] == "slower" for _ in range(400)]) >= 0.95
    assert np.mean([judged(rng, 1.1, forward_noise=0.3)[0] == "slower" for _ in range(400)]) >= 0.85  # as by one alone


@pytest.mark.parametrize(("noise", "rounds"), [(0.02, 20), (0.05, 20), (0.05, 40), (0.1, 20)])
def test_the_slow_down_that_is_said_to_be_found_is_found(noise, rounds):
    rng = np.random.default_rng(3)
    said = float(np.median([judged(rng, 1.0, noise, noise, rounds)[1] for _ in range(50)]))
    share = np.mean([judged(rng, 1 + said, noise, noise, rounds)[0] == "slower" for _ in range(400)])
    assert 0.91 <= share <= 0.985


def test_a_run_beside_others_gets_no_false_verdict(tmp_path):
    """Twenty comparisons of a run with itself, where others were busy in some rounds of one or both."""
    for attempt, load in enumerate([range(4, 12), range(0, 15), range(0, 16), range(ROUNDS)] * 5):
        path, quiet = tmp_path / str(attempt), len(load) <= ROUNDS - 5
        base = simulate(path / "base", plain(), seed=2 * attempt, noise=0.02, load=() if attempt % 2 else load)
        again = simulate(path / "again", plain(), seed=2 * attempt + 1, noise=0.02, load=load)
        comparison = compare_runs(base, again)
        assert {cell.verdict for cell in comparison.verdicts} <= ({"same", "ambiguous"} if quiet else {"not quiet"})
        assert not comparison.regressed
        if not quiet:
            assert comparison.untested == 3 and print_comparison(base, again, require_evidence=True) == 1
            assert any("rounds were noisy (other processes); too few are left" in note for note in comparison.notes)


def test_costs_are_judged_where_no_round_was_quiet(pair):
    comparison = pair(plain(iterations=(10, 6)), load=range(ROUNDS))
    cell = of(comparison, "sejd")
    assert (cell.verdict, cell.regressed_by, of(comparison, "ujd").verdict) == ("slower", ["cost"], "not quiet")


def test_ten_percent_faster_is_no_regression(pair):
    comparison = pair(plain(wall_s=0.2))
    assert of(comparison, "sejd").verdict == "faster"
    assert not comparison.regressed


def test_noise_beyond_the_tolerance_is_ambiguous(pair):
    comparison = pair(plain(wall_s=0.25 * 1.15), rounds=1)
    cell = of(comparison, "sejd")
    assert cell.verdict == "ambiguous" and not cell.regressed
    assert "p = " in cell.evidence[0] and "more rounds" in cell.evidence[0]


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ({"threads": 1}, "threads 2 -> 1"),
        ({"cpu": "another", "logical_cores": 8}, "processor a processor -> another, processors 2 -> 8"),
        ({"packages": {"torch": "2.1"}}, "torch 2.0 -> 2.1"),
        ({"device": "cuda", "gpu": "a card"}, "device cpu -> cuda, GPU None -> a card"),
    ],
)
def test_times_of_different_environments_are_not_compared_and_what_differs_is_told(pair, machine, told):
    comparison = pair(plain(wall_s=0.1, iterations=(10, 6)), machine=machine)
    assert comparison.differences == told.split(", ") and not comparison.same_machine
    assert comparison.notes[0].startswith(f"times are not comparable ({told})")
    assert of(comparison, "ujd").verdict == "not comparable" and of(comparison, "sequential").shift is None
    assert of(comparison, "sejd").regressed_by == ["cost"]  # though its time fell
    assert comparison.untested == 3


def test_a_run_of_several_environments_is_comparable_with_none(tmp_path):
    base, new = (simulate(tmp_path / name, plain(), seed=1) for name in ("base", "new"))
    new.manifest["environment"]["fingerprint"] = None
    assert compare_runs(base, new).differences == ["one of the runs has no single environment, or does not tell it"]


def test_workers_that_time_nothing_do_not_make_times_incomparable(tmp_path):
    base, new = (simulate(tmp_path / name, plain(), seed=1) for name in ("base", "new"))
    for run in (base, new):
        timed = run.manifest["environment"]
        counted = timed | {"threads": 1, "fingerprint": "other"}
        run.manifest["sessions"] = {"s": {"environment": timed}, "w": {"environment": counted}}
        run.manifest["environment"] = timed | {"fingerprint": None}
    assert compare_runs(base, new).differences == []
    new.manifest["sessions"]["s"] = new.manifest["sessions"]["w"]
    found = compare_runs(base, Run(new.path, new.manifest)).differences
    assert any("threads" in one for one in found)


def test_sequential_is_measured_in_forward_passes_on_one_machine(pair):
    cells = plain()
    cells[0].wall_s *= 1.3
    cell = of(pair(cells), "sequential")
    assert cell.verdict == "slower" and "time +30" in cell.evidence[0]


def test_twice_the_iterations_is_a_regression_without_a_clock(pair):
    comparison = pair(plain(iterations=(10, 6)))
    cell = of(comparison, "sejd")
    assert cell.verdict == "slower" and cell.regressed
    assert "grew by 100%" in cell.evidence[0]
    assert any("[5, 3] -> [10, 6]" in sentence for sentence in cell.evidence)


def test_calls_traded_for_tokens_are_left_to_the_clock(pair):
    cell = of(pair(plain(iterations=(10, 6), depth=(2, 1))), "sejd")
    assert cell.verdict == "same" and any("depth by layer" in sentence for sentence in cell.evidence)


@pytest.mark.parametrize(
    ("change", "verdict", "evidence"),
    [
        ({"cache_bytes": 2000}, "same", "cache 1,000 -> 2,000"),
        ({"deviation": 0.08}, "same", "deviation from sequential"),
        ({"deviation": 0.2}, "same", "outside its matrix's quality tolerance"),
        ({"fid": 3.1, "kid": 0.011}, "same", None),
        ({"fid": 3.1, "kid": 0.02}, "same", None),
        ({"nonfinite": 1}, "same", "its samples are not finite"),
        ({"deviation": 0.155}, "same", "quality undecided: deviation 0.155 (0.147 to 0.163), allowed 0.15"),
        ({"error": "out of memory at batch 16"}, "failed", "failed: out of memory"),
    ],
)
def test_what_else_regresses(pair, change, verdict, evidence):
    cell = of(pair(plain(**change)), "sejd")
    assert cell.verdict == verdict
    assert cell.regressed == (evidence is not None)
    assert (cell.state == "invalid now") == (cell.regressed_by[:1] == ["validity"])
    assert evidence is None or any(evidence in sentence for sentence in cell.evidence)


def test_fid_must_move_beyond_tolerance_and_kid_beyond_its_error(pair):
    base = plain(fid=3.0)
    base[0].fid = 3.2
    moved = plain(fid=3.3, kid=0.02)
    moved[0].fid = 3.2
    cell = of(pair(moved, base), "sejd")
    assert cell.regressed and "7.1 standard errors" in cell.evidence[0]


def test_a_tolerance_is_a_tolerance(pair):
    assert not pair(plain(wall_s=0.25 * 1.1, iterations=(6, 3)), tolerance=0.3).regressed


def test_new_cells_are_set_beside_the_fastest_stored_one(pair):
    comparison = pair([*plain(), Simulated("mine", 0.125)])
    cell = of(comparison, "mine")
    assert cell.verdict == "new" and not comparison.regressed
    assert cell.new == pytest.approx(8, rel=0.1)
    assert "fastest valid here: sejd tau 0.5" in cell.evidence[1]


def test_gone_cells_are_told(pair):
    comparison = pair(plain()[:2])
    assert of(comparison, "sejd").verdict == "gone"
    assert not comparison.regressed


def test_the_sum_explains_itself_and_the_method_is_told_once(pair):
    comparison = pair(plain(wall_s=0.35, cache_bytes=2000))
    for form in ("text", "markdown"):
        told = FORMATS[form](comparison, comparison.verdicts)
        assert told.count("Mann-Whitney") == told.count("Hodges-Lehmann") == 1
        assert "3 cells: 1 slower, 2 same; 1 regressed (marked !): 1 by memory, 1 by time; tolerance 5%" in told
        assert len(re.findall(r"slower !", told)) == 1 and re.search(r"\+(\d|1\d)\.\d%", told)


def test_json_holds_numbers_and_objects(pair):
    def refuse(constant):
        raise AssertionError(constant)

    comparison = pair(plain(deviation=float("nan"), wall_s=0.35), rounds=1)
    data = json.loads(FORMATS["json"](comparison, comparison.verdicts), parse_constant=refuse)
    cell = next(cell for cell in data["cells"] if cell["decoder"] == "sejd")
    assert cell["options"] == {} and cell["guidance"] is None and cell["finds"] is None
    assert cell["figures"]["deviation_rmse"] == {"base": 0.05, "new": None}
    assert cell["figures"]["token_evaluations"] == {"base": 504.0, "new": 504.0}
    strings = ("cell_key", "dataset", "checkpoint", "decoder", "label", "verdict", "state", "regressed_by", "evidence")
    for cell in data["cells"]:
        values = [value for name, value in cell.items() if name not in strings]
        assert not any(isinstance(value, str) for value in values)


def test_junit_is_what_services_read(pair):
    comparison = pair([*plain(error="no \x00 room <&>"), Simulated("mine", 0.1)], plain() + [Simulated("old", 1.0)])
    suite = ElementTree.fromstring(FORMATS["junit"](comparison, comparison.verdicts))
    cases = {case.get("name"): case for case in suite}
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    assert suite.tag == "testsuite" and counts == {"tests": 5, "failures": 1, "errors": 0, "skipped": 1}
    assert [child.tag for child in suite] == ["testcase"] * 5 + ["system-out"]
    assert {case.get("classname") for case in suite.findall("testcase")} == {"digits, batch 16"}
    failure = cases["sejd tau 0.5"].find("failure")
    assert (failure.get("type"), failure.get("message")) == ("failure", "failed")
    assert "no ? room <&>" in failure.text
    assert cases["old tau 0.5"].find("skipped").get("message") == "gone"
    assert cases["ujd tau 0.5"].find("failure") is None and "same" in cases["ujd tau 0.5"].find("system-out").text


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_names_the_regressed_cell_and_only_it_when_asked(pair, form):
    comparison = pair(plain(wall_s=0.35))
    whole, part = (
        FORMATS[form](comparison, shown)
        for shown in (comparison.verdicts, [one for one in comparison.verdicts if one.regressed])
    )
    assert "sejd" in whole and "ujd" in whole
    assert "sejd" in part and "ujd" not in part
    if form == "json":
        data = json.loads(whole)
        assert data["regressed"] and data["counts"] == {"slower": 1, "same": 2}
        assert {cell["verdict"] for cell in data["cells"]} <= set(VERDICTS)
        assert next(cell for cell in data["cells"] if cell["regressed"])["time_factor"]["factor"] > 1.3


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_regressed_is_said(pair, form):
    assert "regress" in FORMATS[form](pair(plain()), [])


def test_runs_that_share_nothing_are_refused(pair):
    with pytest.raises(HarnessError, match="no cell in common"):
        pair([Simulated("mine", 1.0)])


def test_what_was_not_timed_is_not_called_the_same(tmp_path):
    base = simulate(tmp_path / "base", plain(), seed=1)
    for name, rounds in (("timed", 5), ("once", 1), ("seldom", 3), ("never", 0)):
        new = simulate(tmp_path / name, plain(), seed=1, rounds=rounds)
        for one, other in ((base, new), (new, base), (new, new)):
            comparison = compare_runs(one, other)
            verdicts = {cell.verdict for cell in comparison.verdicts}
            assert "not measured" not in verdicts if rounds else verdicts == {"not measured"}
            for form in FORMATS.values():
                text = form(comparison, comparison.verdicts)
                assert "+nan" not in text and "nan%" not in text and "NaN" not in text
            assert print_comparison(one, other) == int(comparison.regressed) == 0
            assert print_comparison(one, other, require_evidence=True) == (comparison.untested > 0)
        assert comparison.untested == (0 if rounds == 5 else 3)


def test_deterministic_costs_are_evidence_without_a_clock(pair):
    cell = of(pair(plain(iterations=(10, 6)), rounds=0), "sejd")
    assert cell.verdict == "slower" and cell.regressed


def test_evidence_of_a_cell_that_is_gone_is_required_when_asked(tmp_path, capsys):
    base = simulate(tmp_path / "base", plain(), seed=1)
    new = simulate(tmp_path / "new", plain()[:2], seed=2)
    assert print_comparison(base, new) == 0 and print_comparison(base, new, require_evidence=True) == 1
    assert re.search(r"gone +digits +sejd tau 0.5", capsys.readouterr().out)


@pytest.mark.parametrize("columns", [30, 80, 100, 160])
def test_no_decoder_is_cut_in_a_narrow_terminal(pair, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    comparison = pair(plain(wall_s=0.35))
    text = FORMATS["text"](comparison, comparison.verdicts)
    table, _, _ = text.partition("note:")
    words = " ".join(table.split())  # a row may be broken between words
    assert "…" not in text and all(name in words for name in ("sequential", "ujd tau 0.5", "sejd tau 0.5", "slower"))
    assert max(map(len, table.splitlines()[:-1])) <= columns
    figures = [float(number) for number in re.findall(r"([\d.]+)x ->", text)]  # what is printed is plausible
    assert len(figures) == 3 and all(0.9 < figure < 5 for figure in figures)


def test_a_negative_tolerance_is_refused(pair):
    with pytest.raises(HarnessError, match="tolerance"):
        pair(plain(), tolerance=-1)
