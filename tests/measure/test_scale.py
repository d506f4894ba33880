"""A run of seven thousand cells and seven million residual rows: what it costs to append to, to resume and to report.

Times are printed, never asserted (`-s` shows them); what is asserted is what they follow from.
"""

import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from harness.measure.expand import expand
from harness.measure.matrix import load_matrix
from harness.measure.run_matrix import run_matrix
from harness.progress import Reporter
from harness.runs.parts import LARGE, MANY, Parts
from harness.runs.store import MANIFEST, RunStore, read_run
from harness.runs.tables import TABLES

MATRIX = """
device = "cpu"
[[datasets]]
name = "digits"
[[decoders]]
name = "sequential"
[[decoders]]
name = "ujd"
[[decoders]]
name = "sejd"
[grid]
tau = [0.05, 0.1, 0.25, 0.5, 1.0]
batch_sizes = [1, 2, 4, 8, 16]
seeds = {seeds}
[timing]
rounds = 5
[quality]
enabled = false
[memory]
enabled = false
"""
LAYERS, CALLS = 6, 167  # about a thousand residual rows per cell


def test_a_row_is_written_a_bounded_number_of_times(tmp_path, monkeypatch):
    written = []
    write = Parts._write
    monkeypatch.setattr(
        Parts, "_write", lambda self, rows, stamp: (written.append(len(rows)), write(self, rows, stamp))[1]
    )
    rows = 20 * MANY
    with RunStore.create(tmp_path / "run", {}) as store:
        most = 0
        for number in range(rows):
            store.append("layers", [{"cell_id": f"{number:016x}", "cell_key": "", "layer": 1}])
            most = max(most, len(read_run(store.path).parts("layers")))
        assert len(store.read("layers")) == rows
    assert most <= MANY
    assert sum(written) / rows <= 12  # of parts this small many merges make a large one


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The matrix as TOML, and a run of it in which one group of cells lacks its last round."""
    folder = tmp_path_factory.mktemp("scale")
    toml = folder / "large.toml"
    toml.write_text(MATRIX.format(seeds=list(range(133))))  # as large as a matrix may be
    print(f"\n{'':=<100}")
    seconds = time.perf_counter()
    cells = expand(load_matrix(str(toml)))
    print(f"{len(cells):,} cells expanded in {time.perf_counter() - seconds:.1f} s")
    start(toml, folder / "run")
    fill(folder / "run", cells)
    return toml, folder / "run", cells


def start(toml, out):
    """The manifest and the table `cells`, as the runner writes them before the first measurement."""

    class Stopping(Reporter):
        def begin(self, total):
            raise Stopped

    with pytest.raises(Stopped):
        run_matrix(load_matrix(str(toml)), out, Stopping())


def fill(out, cells):
    """Rows of every other table, generated; appended in as many parts as many killed runs would leave."""
    rng = np.random.default_rng(0)
    described = (
        Parts(out, TABLES["cells"])
        .read()
        .to_pandas()
        .astype(object)
        .set_index("cell_id")
        .loc[[c.cell_id for c in cells]]
    )
    ids, keys = np.array([cell.cell_id for cell in cells]), np.array([cell.cell_key for cell in cells])

    def append(table, frame_of, count, size):
        store, seconds = Parts(out, TABLES[table]), time.perf_counter()
        for first in range(0, count, size):
            places = np.arange(first, min(first + size, count))
            columns = frame_of(places)
            store.append(pa.table({
                name: pa.array(columns[name], kind, from_pandas=True)
                if name in columns else pa.nulls(len(places), kind)
                for name, kind in TABLES[table].columns.items()
            }))  # fmt: skip
        seconds = time.perf_counter() - seconds
        size = sum(path.stat().st_size for path in store.paths())
        print(f"{table}: {count:,} rows in {-(-count // len(places)):,} appends, {seconds:.1f} s, "
              f"{len(store.paths())} parts, {size / 1e6:.0f} MB")  # fmt: skip

    def identity(places, per_cell):
        cell = places // per_cell
        return {"cell_id": ids[cell], "cell_key": keys[cell]}

    def residuals(places):
        call = places % (LAYERS * CALLS)
        falling = np.exp(-(call % CALLS) / 10)
        noise = {name: falling * rng.random(len(places)) for name in TABLES["residuals"].names[4:]}
        return identity(places, LAYERS * CALLS) | {"layer": call // CALLS + 1, "iteration": call % CALLS + 1} | noise

    def layers(places):
        return identity(places, LAYERS) | {
            "layer": places % LAYERS + 1, "block": LAYERS - 1 - places % LAYERS, "mode": ["jacobi"] * len(places),
            "iterations": np.full(len(places), CALLS), "converged": np.ones(len(places), bool),
            "token_evaluations": rng.random(len(places)), "depth": np.full(len(places), CALLS),
            "wall_s": rng.random(len(places)), "final_residual": rng.random(len(places)), "flags": [""] * len(places),
        }  # fmt: skip

    rounds = 5
    last = cells[-1].group_id

    def timings(places):
        cell = described.iloc[places // rounds]
        wall = rng.random(len(places))
        facts = {name: list(cell[name]) for name in TABLES["timings"].names if name in cell.columns}
        return facts | identity(places, rounds) | {
            "session": ["s"] * len(places), "round": places % rounds, "position": places % rounds, "wall_s": wall,
            "images_per_s": 1 / wall, "encode_s": wall, "forward_ratio": wall, "status": ["ok"] * len(places),
        }  # fmt: skip

    append("residuals", residuals, len(cells) * LAYERS * CALLS, 50 * LAYERS * CALLS)
    append("layers", layers, len(cells) * LAYERS, 100 * LAYERS)
    complete = sum(cell.group_id != last for cell in cells)
    assert [cell.group_id == last for cell in cells].index(True) == complete  # groups follow each other
    append("timings", timings, complete * rounds, 100 * rounds)


@pytest.mark.slow
def test_a_large_run_resumes_without_reading_it_all(run):
    toml, out, cells = run
    for table in TABLES:
        size = sum(path.stat().st_size for path in read_run(out).parts(table))
        assert len(read_run(out).parts(table)) <= MANY + 2 * size / LARGE + 1
    began = time.perf_counter()
    command = [sys.executable, "-m", "harness.cli", "run", str(toml), "--out", str(out), "--resume", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if "%" in line)  # after notes
    finally:
        process.kill()
        process.communicate()
    print(f"resume of {len(cells):,} cells: the first unit after {time.perf_counter() - began:.1f} s, "
          "imports, checkpoint and the expansion of the matrix included")  # fmt: skip
    assert "timing: digits" in line
    began = time.perf_counter()
    with RunStore.resume(out) as store:
        opened = time.perf_counter() - began
        assert not store.damaged
        done = store.cell_ids("residuals")
    assert done == {cell.cell_id for cell in cells}
    listed = time.perf_counter() - began - opened
    print(f"of that, checking every part {opened:.1f} s, the cells with residuals {listed:.1f} s")
    assert (out / MANIFEST).is_file()


@pytest.mark.slow
def test_the_report_of_a_large_run_fits_into_two_gigabytes(run, tmp_path):
    _, out, _ = run
    code = (
        "import resource, sys, time; from analysis.report.page import build; t = time.perf_counter();"
        f"build([{str(out)!r}], {str(tmp_path)!r});"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "a figure could not be drawn"
    peak, seconds = map(float, done.stdout.split())
    print(f"report: peak memory {peak:.2f} GB, {seconds:.0f} s")
    assert peak < 2
