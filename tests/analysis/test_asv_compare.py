"""The gate over asv's result files, on files as asv writes them."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from analysis.compare.asv import compare_results, find_results, print_comparison, read_results, save_costs
from harness.cli import app
from harness.errors import HarnessError

MACHINE = {"arch": "x86_64", "cpu": "a processor", "num_cpu": "2", "os": "Linux 6", "machine": "here", "ram": "8"}
PARAMS = [["'digits'"], ["'sequential'", "'sejd'"], ["0.5"], ["16"]]
COLUMNS = ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25",
           "stats_q_75", "number", "repeat", "samples", "profile"]  # fmt: skip
SEJD = "(digits, sejd, 0.5, 16)"
SLOW = f"decoding.Decode.track_iterations{SEJD}"


def result(values, samples=None, params=PARAMS, version="1"):
    row = [values, params, version, 1, 1.0] + ([None] * 6 + [samples] if samples else [])
    return row


def stored(
    path, *, seed=0, time=0.1, iterations=20, peak=150e6, setup=100e6, machine=MACHINE, version="1", broken=False
):
    """A result file of two decoders; the keyword arguments are SeJD's."""
    rng = np.random.default_rng(seed)
    samples = [list(seconds * np.exp(rng.normal(0, 0.03, 20))) for seconds in (0.3, time)]
    values = [float(np.median(seconds)) for seconds in samples]
    data = {
        "commit_hash": "0123456789abcdef",
        "params": machine | {"python": "3.11"},
        "result_columns": COLUMNS,
        "results": {
            "decoding.Decode.time_run": result([values[0], None if broken else values[1]], samples, version=version),
            "decoding.Decode.track_iterations": result([384, iterations]),
            "decoding.Decode.track_deviation": result([float("nan"), 0.05]),
            "decoding.Decode.peakmem_run": result([110e6, peak]),
            "decoding.Decode.peakmem_setup": result([100e6, setup]),
            "quality.Load.time_run": result([0.01], [list(np.full(20, 0.01))], params=[]),
        },
        "version": 2,
    }
    path.write_text(json.dumps(data))
    return read_results(path)


@pytest.fixture
def compare(tmp_path):
    def compare(base=None, **new):
        before = stored(tmp_path / "base.json", seed=1, **(base or {}))
        return compare_results(before, stored(tmp_path / "new.json", **{"seed": 2} | new))

    return compare


def regressed(comparison):
    return {benchmark.name for benchmark in comparison.verdicts if benchmark.regressed}


def test_the_same_commit_has_no_regression(compare):
    comparison = compare()
    assert not comparison.regressed
    assert {benchmark.verdict for benchmark in comparison.verdicts} == {"same"}
    assert len(comparison.verdicts) == 8  # two decoders on four benchmarks and one alone, less one left out by NaN


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"time": 0.13}, {f"decoding.Decode.time_run{SEJD}"}),
        ({"iterations": 40}, {f"decoding.Decode.track_iterations{SEJD}"}),
        ({"peak": 200e6}, {f"decoding.Decode.peakmem_run{SEJD}"}),
        ({"peak": 200e6, "setup": 150e6}, set()),  # the imports grew, the decode did not
        ({"broken": True}, {f"decoding.Decode.time_run{SEJD}"}),
        ({"time": 0.08}, set()),
    ],
)
def test_what_grew_is_named(compare, change, names):
    assert regressed(compare(**change)) == names


def test_evidence_says_by_how_much(compare):
    (benchmark,) = (one for one in compare(time=0.13).verdicts if one.regressed)
    assert "+3" in benchmark.evidence[0] and "Mann-Whitney p" in benchmark.evidence[0]


def test_across_machines_only_costs_that_need_no_clock_are_compared(compare):
    other = MACHINE | {"cpu": "another"}
    comparison = compare(time=1.0, peak=1e9, machine=other)
    assert not comparison.regressed and "not one machine" in comparison.notes[0]
    assert regressed(compare(iterations=40, machine=other)) == {f"decoding.Decode.track_iterations{SEJD}"}


def test_without_samples_no_time_is_called_worse(tmp_path):
    files = []
    for name, seconds in (("base", 0.1), ("new", 0.2)):
        stored(tmp_path / "x.json", time=seconds)
        data = json.loads((tmp_path / "x.json").read_text())
        for row in data["results"].values():
            del row[5:]
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
        files.append(read_results(tmp_path / f"{name}.json"))
    verdicts = {benchmark.name: benchmark.verdict for benchmark in compare_results(*files).verdicts}
    assert verdicts[f"decoding.Decode.time_run{SEJD}"] == "ambiguous"


def test_a_changed_benchmark_is_left_out_and_told(compare):
    comparison = compare(time=1.0, version="2")
    assert not comparison.regressed and "changed their version" in comparison.notes[0]


def test_a_benchmark_that_one_side_lacks_is_named(tmp_path):
    base, new = stored(tmp_path / "base.json"), stored(tmp_path / "new.json")
    only = new.measurements.pop("quality.Load.time_run")
    new.measurements["quality.Read.time_run"] = only
    verdicts = {one.name: one.verdict for one in compare_results(base, new).verdicts if one.verdict != "same"}
    assert verdicts == {"quality.Load.time_run": "gone", "quality.Read.time_run": "new"}
    assert print_comparison(base, new) == 0


def test_the_command_fails_and_names_the_benchmark(tmp_path):
    stored(tmp_path / "base.json")
    stored(tmp_path / "new.json", iterations=40)
    for new, code in (("base", 0), ("new", 1)):
        arguments = ["bench-compare", str(tmp_path / "base.json"), str(tmp_path / f"{new}.json")]
        done = CliRunner().invoke(app, arguments, standalone_mode=False)
        assert done.return_value == code, done.output
        assert bool(re.search(rf"slower +{re.escape(SLOW)} ", done.output)) == bool(code)


@pytest.mark.parametrize("text", ["{", "[]", '{"results": {}}', '{"result_columns": [], "results": {"a": 1}}'])
def test_another_file_is_one_sentence(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(HarnessError, match="is no result file of asv"):
        find_results(str(tmp_path / "a.json"))


def test_stored_costs_are_tracked_values_alone_and_compare_everywhere(tmp_path, compare):
    before = stored(tmp_path / "run.json")
    costs = find_results(str(save_costs(before, tmp_path / "baselines" / "asv.json")))
    assert all(".track_" in name for name in costs.measurements)
    assert "a processor" not in costs.path.read_text()
    assert not compare_results(costs, before).regressed
    slow = compare_results(costs, stored(tmp_path / "slow.json", iterations=40, time=9.0))
    assert regressed(slow) == {f"decoding.Decode.track_iterations{SEJD}"}


def test_an_unknown_commit_is_one_sentence(tmp_path):
    with pytest.raises(HarnessError, match="neither a result file nor a commit"):
        find_results("no-such-commit", tmp_path)


def test_nothing_in_common_is_refused(tmp_path):
    base = stored(tmp_path / "base.json")
    new = stored(tmp_path / "new.json")
    new.measurements.clear()
    with pytest.raises(HarnessError, match="no benchmark in common"):
        print_comparison(base, new)
