"""Certificates where samples are drawn and measured: told, counted, stored, and the same however the work is split."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from test_runner import Quiet

import harness
from harness.cli import app
from harness.decoders.exact import ExactBatch
from harness.errors import HarnessError
from harness.measure import expand as plan
from harness.measure.matrix import Matrix
from harness.measure.probes.probe import build_probe
from harness.measure.run_matrix import run_matrix
from harness.measure.run_probe import run_probe, subject_of
from harness.measure.sampling import read_request
from harness.measure.tasks.samples import draw_to_files
from harness.measure.tasks.sums import Sums, exact_samples, measure_samples
from harness.measure.units import Bench
from harness.measure.workers.local import Local
from harness.progress import LineReporter


@pytest.fixture(scope="module")
def few():
    """Little is fitted."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("harness.fitting.calibrate.DENSE_SAMPLES", 64)
        patched.setattr("harness.measure.tasks.samples.SHARD", 4)
        yield


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory, few):
    """One of its own: what is fitted to it lies beside it."""
    path = shutil.copy(tiny_checkpoint, tmp_path_factory.mktemp("certified") / "small.safetensors")
    harness.prepare(harness.build_decoder("ujd", certify=0.01), harness.load_flow(path), 4, report=lambda said: None)
    return path


def request_of(checkpoint, spec="ujd tau=0.5", **options):
    return read_request(str(checkpoint), spec, **({"count": 11, "batch_size": 3, "device": "cpu"} | options))


def test_samples_tell_their_certificate(checkpoint):
    drawn = harness.sample(checkpoint, 5, "ujd tau=0.5 certify=0.002", batch_size=3)
    assert drawn.certificate.rms.shape == (5,) and not drawn.certificate.above.any()
    assert "polished, 0 above 0.002>" in repr(drawn) and "0 above 0.002" in drawn._repr_html_()
    assert harness.sample(checkpoint, 2, "ujd").certificate is None


def test_the_command_line_states_certifies_and_refuses(checkpoint, tmp_path):
    def call(*words):
        given = ["sample", str(checkpoint), "-n", "4", "--out", str(tmp_path / "grid.png"), *words]
        return CliRunner().invoke(app, given, catch_exceptions=True)

    stated = call("--decoder", "ujd", "--certify")
    assert stated.exit_code == 0 and "deviations estimated up to" in stated.output and "polished" not in stated.output
    certified = call("--decoder", "ujd tau=0.5", "--certify", "0.001", "--seed", "1")
    assert "0 above 0.001" in certified.output
    assert "0 above 0.001" in call("--certify", "0.001").output  # by the default decoder
    assert "--certify" in str(call("--certify", "0").exception)


def test_counts_are_stored_with_many_samples_and_kept_by_a_resumed_call(checkpoint, tmp_path):
    request, folder = request_of(checkpoint, certify="0.0001"), tmp_path / "many"
    with pytest.raises(KeyboardInterrupt):
        draw_to_files(request, folder, Local(1), Quiet(1), threads=1)
    said = draw_to_files(request, folder, Local(1), Quiet(), threads=1)
    stored = json.loads((folder / "samples.json").read_text())
    assert stored["request"]["decoder"]["certify"] == 0.0001 and list(stored["certified"]) == ["0", "6"]
    polished = sum(part["polished"] for part in stored["certified"].values())
    assert polished > 0 and f"{polished} polished, 0 above 0.0001" in said
    table = tmp_path / "many.parquet"
    assert "polished" in draw_to_files(request, table, Local(1), Quiet(), threads=1)
    assert json.loads(pq.read_metadata(table).metadata[b"certified"]) == stored["certified"]
    draw_to_files(request_of(checkpoint), tmp_path / "plain", Local(1), Quiet(), threads=1)
    assert "certified" not in json.loads((tmp_path / "plain" / "samples.json").read_text())


def matrix_of(checkpoint, **decoder):
    raw = {
        "name": "certified",
        "device": "cpu",
        "datasets": [{"name": "digits", "checkpoint": str(checkpoint)}],
        "decoders": [{"name": "sequential"}, {"name": "ujd", **decoder}],
        "grid": {"batch_sizes": [4], "tau": [0.5]},
        "timing": {"rounds": 2, "warmup": 0},
        "quality": {"num_samples": 12},
        "memory": {"enabled": False},
    }
    return Matrix.model_validate(raw)


def test_certificates_of_runs_merge_into_the_whole(checkpoint):
    cell = plan.expand(matrix_of(checkpoint, certify=0.001))[1]
    flow, decoder = harness.load_flow(cell.checkpoint_path), cell.build()
    exact, merged = exact_samples(cell, flow, range(12)), Sums()
    for run in (range(4), range(4, 12)):
        sums = measure_samples(cell, flow, decoder, run, exact[run.start : run.stop])
        merged.merge(Sums.from_bytes(sums.to_bytes()))
    whole = measure_samples(cell, flow, decoder, range(12), exact)
    assert merged.certificate == whole.certificate and whole.certificate["above_tolerance"] == 0
    assert 0 < whole.certificate["certified_median"] <= whole.certificate["certified_max"] <= 0.001
    assert whole.certificate["polished"] == int(np.concatenate(whole.certified)[:, 3].sum()) > 0
    assert Sums().certificate == {}


def test_a_run_has_its_certificates_and_their_cost_in_its_tables(checkpoint, tmp_path):
    run = run_matrix(matrix_of(checkpoint, certify=0.001), tmp_path / "run", Quiet(), threads=1)
    quality = run.table("quality").merge(run.table("cells")[["cell_id", "decoder"]]).set_index("decoder")
    assert quality.loc["ujd", "above_tolerance"] == 0 and quality.loc["ujd", "polished"] > 0
    assert quality.loc["ujd", "deviation_rmse"] <= quality.loc["ujd", "certified_upper"] <= 0.001
    assert quality.loc["sequential", ["certified_median", "polished"]].isna().all()
    assert len(run.table("residuals")) and run.table("failures").empty
    plain = run_matrix(matrix_of(checkpoint), tmp_path / "plain", Quiet(), threads=1)
    costs = [one.table("layers").groupby("cell_id", sort=False)["token_evaluations"].sum() for one in (run, plain)]
    assert costs[0].iloc[1] >= costs[1].iloc[1] + 30  # a forward pass of two layers of 15 tokens


def test_the_probe_has_every_sample_beside_its_true_deviation(checkpoint, tmp_path):
    torch.set_num_threads(1)
    probe = build_probe("certificate", decoders="ujd tau=0.5,ujd tau=0.5 certify=0.001", samples=6, batch=4)
    rows = run_probe(probe, str(checkpoint), tmp_path / "run", LineReporter()).table("certificates")
    assert rows.groupby("spec").size().tolist() == [6, 6]
    assert (rows["deviation_rmse"] <= rows["upper"]).mean() > 0.7
    by = dict(list(rows.groupby("spec")))
    plain = by["ujd tau=0.5"]
    assert (plain["certificate_rms"] / plain["estimate"]).between(plain["ratio_low"], plain["ratio_high"]).all()
    assert not by["ujd tau=0.5"]["polished"].any() and (by["ujd tau=0.5 certify=0.001"]["upper"] <= 0.001).all()


def test_the_probes_exact_samples_are_decoded_once_for_all_decoders(checkpoint, monkeypatch):
    probe = build_probe("certificate", decoders="ujd tau=0.5,ujd", samples=6, batch=4)
    decoded, decode = [], ExactBatch.decode
    monkeypatch.setattr(ExactBatch, "decode", lambda *given: (decoded.append(len(given[0])), decode(*given))[1])
    subject, bench = subject_of(probe, str(checkpoint), None, "cpu"), Bench("")
    rows = [probe.measure(unit, bench)["certificates"] for unit in probe.units(bench.flow(subject), subject)]
    assert [len(found) for found in rows] == [6, 6] and decoded == [4, 2]


def test_the_probe_refuses_what_no_call_inverts_before_anything_is_fitted(tmp_path):
    with pytest.raises(HarnessError, match="'discrete-digits' define their own update"):
        run_probe(build_probe("certificate"), "discrete-digits", tmp_path / "run", LineReporter())
    assert not (tmp_path / "run").exists()
