"""The probe of observables, on a small random flow of Ising fields."""

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from harness.errors import HarnessError
from harness.flows.ising import Ising
from harness.flows.zuko_flow import checkpoint_metadata
from harness.measure.probes.probe import build_probe
from harness.measure.run_probe import run_probe
from harness.progress import LineReporter

zuko = pytest.importorskip("zuko", reason="the optional extra zuko is not installed")


@pytest.fixture
def checkpoint(tmp_path):
    maf = zuko.flows.MAF(features=9, transforms=2, hidden_features=(32,))
    with torch.no_grad():
        for transform in maf.transform.transforms:
            transform.hyper[-1].weight *= 4
    path = tmp_path / "fields.safetensors"
    facts = checkpoint_metadata("ReLU", ising={"side": 3, "temperature": 3.0})
    save_file(maf.state_dict(), path, metadata=facts)
    return path


def observed(checkpoint, folder, **options):
    probe = build_probe("observables", **({"samples": 500, "batch": 100} | options))
    return run_probe(probe, str(checkpoint), folder, LineReporter()).table("observables")


def test_every_decoder_has_its_observables_beside_the_exact_ones(checkpoint, tmp_path):
    rows = observed(checkpoint, tmp_path / "run", decoders=("ujd tau=0.0", "ujd tau=1.0"))
    model = Ising(3, 3.0)
    assert set(rows["decoder"]) == {"sequential", "ujd tau=0.0", "ujd tau=1.0"}
    assert set(rows["observable"]) == set(model.exact)
    for name, part in rows.groupby("observable"):
        assert part["expected"].tolist() == pytest.approx([model.exact[name]] * 3)
        by = part.set_index("decoder")
        assert by.loc["sequential", "difference"] == by.loc["sequential", "difference_error"] == 0
        assert by.loc["ujd tau=0.0", "difference"] == pytest.approx(0, abs=2e-3)
        wanted = by.loc["sequential", "mean"] + by.loc["ujd tau=1.0", "difference"]
        assert by.loc["ujd tau=1.0", "mean"] == pytest.approx(wanted)
    assert (rows["standard_error"] > 0).all()
    assert (rows["num_samples"] == 500).all()


def test_the_same_seed_gives_the_same_rows_whatever_the_other_decoders(checkpoint, tmp_path):
    one = observed(checkpoint, tmp_path / "one", decoders=("ujd tau=1.0",))
    two = observed(checkpoint, tmp_path / "two", decoders=("sejd tau=0.5", "ujd tau=1.0"))
    columns = ["decoder", "observable", "mean", "difference"]
    both = one[columns].merge(two[columns], on=["decoder", "observable"])
    assert len(both) == 4
    pd.testing.assert_series_equal(both["mean_x"], both["mean_y"], check_names=False)


def test_a_flow_without_a_model_is_refused(tmp_path, tiny_checkpoint):
    with pytest.raises(HarnessError, match="not trained on a model"):
        observed(tiny_checkpoint, tmp_path / "run")
    with pytest.raises(HarnessError):
        build_probe("observables", samples=1)
