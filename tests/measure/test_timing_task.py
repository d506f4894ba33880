"""How a decode and its floor are called is measured alike, and told; with a capture that runs again, without a GPU."""

import pytest
from replays import Replays

from harness.errors import HarnessError
from harness.flows.graphs import Graphs
from harness.measure.cells import Subject
from harness.measure.expand import expand
from harness.measure.matrix import build_matrix
from harness.measure.tasks.timing import TimingTask
from harness.measure.units import Bench
from harness.runs.tables import TABLES

OFF = {"name": "ujd", "label": "eager", "cuda_graphs": False}


def cells(*decoders, **more):
    tables = {
        "name": "small",
        "device": "cpu",
        "datasets": [{"name": "digits"}],
        "decoders": list(decoders),
        "grid": {"batch_sizes": [2], "tau": [0.5]},
    }
    return expand(build_matrix(tables | more, "the test"), None)


def measured(found, monkeypatch, captures):
    bench, task = Bench("session"), TimingTask(rounds=1, warmup=1)
    flow = bench.flow(found[0])
    graphs = flow.fits[Graphs] = Graphs(flow.device, Replays())
    for module in ("harness.decoders.decoder", "harness.measure.tasks.timing"):
        monkeypatch.setattr(f"{module}.captures", lambda flow: captures)
    (unit,) = task.units(found)
    rows = task.measure(unit, bench)["timings"]
    assert {name for row in rows for name in row} <= {*TABLES["timings"].columns}
    assert all(row["status"] == "ok" for row in rows), rows
    return {row["label"]: row for row in rows}, graphs.capture, flow


def test_a_row_tells_how_the_network_was_called(monkeypatch):
    rows, capture, flow = measured(cells({"name": "ujd"}, OFF), monkeypatch, captures=True)
    assert {label: row["calls"] for label, row in rows.items()} == {"ujd": "captured", "eager": "eager"}
    assert {row["network"] for row in rows.values()} == {"plain"}
    assert all(row["warmup_s"] > 0 for row in rows.values())


@pytest.mark.parametrize(("captures", "decoders", "times"), [(True, [OFF], 0), (False, [{"name": "ujd"}], 0),
                                                             (True, [{"name": "ujd"}, OFF], 2)])  # fmt: skip
def test_the_floor_is_captured_where_a_decode_is(monkeypatch, captures, decoders, times):
    replayed = []
    monkeypatch.setattr(
        "harness.measure.tasks.timing.timed",
        lambda call, device: (replayed.append(getattr(call, "__name__", "")), (1.0, call()))[1],
    )
    measured(cells(*decoders), monkeypatch, captures)
    assert replayed.count("replay") == times  # a warm-up and a round


def test_the_identity_holds_the_dtype_and_tf32_needs_a_gpu(tmp_path):
    (tmp_path / "flow").write_bytes(b"weights")
    ids = {Subject.of(tmp_path / "flow", "flow", seed=0, device="cuda", dtype=dtype).cell_id
           for dtype in ("float32", "tf32", "bfloat16")}  # fmt: skip
    assert len(ids) == 3
    with pytest.raises(HarnessError, match="tf32"):
        cells({"name": "ujd"}, dtype="tf32")
