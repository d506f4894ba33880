"""Comparisons of runs whose truth is known: simulated rounds with noise, drift and outliers."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest

from analysis.compare import VERDICTS, compare_runs
from analysis.compare.render import FORMATS, print_comparison
from harness.errors import HarnessError
from harness.runs.store import RunStore

ROUNDS = 20
SEQUENTIAL_S, ENCODE_S = 1.0, 0.05
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


def simulate(path, cells, seed=0, rounds=ROUNDS, fingerprint="a machine", code="one", noise=0.04):
    """A run folder: per measurement lognormal noise and rare outliers, per round a drift that pairing cancels."""
    rng = np.random.default_rng(seed)
    manifest = {
        "environment": {"fingerprint": fingerprint},
        "matrix": {"quality": {"max_deviation": 0.15, "max_fid_increase": 0.05}},
    }
    drift = np.exp(rng.normal(0, 0.15, rounds).cumsum() * 0.3)
    encode = ENCODE_S * drift * np.exp(rng.normal(0, noise, rounds))
    tables = {name: [] for name in ("cells", "timings", "layers", "quality", "memory")}
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


@pytest.mark.parametrize(("wall_s", "verdict"), [(0.25, "same"), (0.1, "invalid")])
def test_a_cell_that_stays_invalid_is_the_same_but_never_faster(pair, wall_s, verdict):
    cell = of(pair(plain(deviation=0.2, wall_s=wall_s), plain(deviation=0.2, wall_s=0.25)), "sejd")
    assert cell.verdict == verdict and not cell.regressed


def test_ten_percent_slower_is_found_and_nothing_else_is(tmp_path, noise=0.04):
    """Found in at least 19 of 20 tries at 20 rounds, with no false alarm in 20 tries of three cells each."""
    found = false = 0
    for attempt in range(20):
        path = tmp_path / str(attempt)
        base = simulate(path / "base", plain(), seed=3 * attempt, noise=noise)
        again = simulate(path / "again", plain(), seed=3 * attempt + 1, noise=noise)
        slower = simulate(path / "slow", plain(wall_s=0.25 * 1.1), seed=3 * attempt + 2, noise=noise)
        found += of(compare_runs(base, slower), "sejd").verdict == "slower"
        false += compare_runs(base, again).regressed
    assert found >= 19
    assert false == 0


def test_ten_percent_faster_is_no_regression(pair):
    comparison = pair(plain(wall_s=0.2))
    assert of(comparison, "sejd").verdict == "faster"
    assert not comparison.regressed


def test_noise_beyond_the_tolerance_is_ambiguous(pair):
    comparison = pair(plain(wall_s=0.25 * 1.15), rounds=1)
    cell = of(comparison, "sejd")
    assert cell.verdict == "ambiguous" and not cell.regressed
    assert "Mann-Whitney" in cell.evidence[0] and "more rounds" in cell.evidence[0]


def test_a_clock_that_runs_slower_changes_nothing_across_machines(tmp_path):
    fast = simulate(tmp_path / "fast", plain(), seed=1)
    slow = [Simulated(**vars(cell) | {"wall_s": 3 * cell.wall_s}) for cell in plain()]
    comparison = compare_runs(fast, simulate(tmp_path / "slow", slow, seed=2, fingerprint="another"))
    assert {cell.verdict for cell in comparison.verdicts} == {"same"}
    assert not comparison.same_machine and "different machines" in comparison.notes[0]
    assert of(comparison, "sequential").shift is None


def test_sequential_is_measured_in_forward_passes_on_one_machine(pair):
    cells = plain()
    cells[0].wall_s *= 1.3
    cell = of(pair(cells), "sequential")
    assert cell.verdict == "slower" and "forward passes" in cell.evidence[0]


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
        ({"deviation": 0.2}, "invalid", "outside its matrix's quality tolerance"),
        ({"fid": 3.1, "kid": 0.011}, "same", None),
        ({"fid": 3.1, "kid": 0.02}, "same", None),
        ({"nonfinite": 1}, "invalid", "its samples are not finite"),
        ({"deviation": 0.155}, "same", "quality undecided: deviation 0.155 (0.147 to 0.163), allowed 0.15"),
        ({"error": "out of memory at batch 16"}, "invalid", "failed: out of memory"),
    ],
)
def test_what_else_regresses(pair, change, verdict, evidence):
    cell = of(pair(plain(**change)), "sejd")
    assert cell.verdict == verdict
    assert cell.regressed == (evidence is not None)
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
    assert "…" not in text and all(name in table for name in ("sequential", "ujd tau 0.5", "sejd tau 0.5", "slower"))
    assert max(map(len, table.splitlines()[:-1])) <= columns
    figures = [float(number) for number in re.findall(r"([\d.]+)x ->", text)]  # what is printed is plausible
    assert len(figures) == 3 and all(0.9 < figure < 5 for figure in figures)


def test_a_negative_tolerance_is_refused(pair):
    with pytest.raises(HarnessError, match="tolerance"):
        pair(plain(), tolerance=-1)
