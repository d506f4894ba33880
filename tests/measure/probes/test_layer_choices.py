"""Probes of cost, coupling, memory and of which layers to keep sequential, on a small flow."""

from dataclasses import dataclass

import pytest
import torch

from harness.decoders import build_decoder
from harness.errors import HarnessError
from harness.fitting import prepare
from harness.flows import CausalFlow
from harness.flows.checkpoints import checkpoint_path
from harness.measure.cells import Subject
from harness.measure.probes.choices import subsets
from harness.measure.probes.coupling import amplified
from harness.measure.probes.probe import build_probe
from harness.measure.units import Bench

L, K = 16, 2


@dataclass
class Measured:
    subject: Subject
    bench: Bench
    flow: CausalFlow

    def samples(self, indices):
        batch = self.bench.batch(self.subject, indices)
        return batch.latents, batch.labels


@pytest.fixture
def subject(tiny_checkpoint):
    subject, bench = Subject.of(tiny_checkpoint, "tiny", seed=0, device="cpu", dataset="digits"), Bench("session")
    return Measured(subject, bench, bench.flow(subject))


def measured(on, name, **options):
    """Rows by table, all units together."""
    probe, tables = build_probe(name, **options), {}
    for decoder, batch in probe.reads():
        prepare(decoder, on.flow, batch)
    for unit in probe.units(on.flow, on.subject):
        for table, rows in probe.measure(unit, on.bench).items():
            tables.setdefault(table, []).extend(rows)
    return tables


def test_every_choice_of_layers_is_decoded_and_costs_what_its_layers_cost(subject):
    tables = measured(subject, "layers", batches="3", rounds=2, tau=0.01)
    sets = {row["sequential_layers"]: row for row in tables["layer_sets"]}
    assert list(sets) == ["none", "1", "2", "1+2"]
    assert sets["1+2"]["deviation_rmse"] == 0 and sets["1+2"]["depth"] == K * (L - 1) and not sets["1+2"]["iterations"]
    latents, labels = subject.samples(range(3))
    for name, choice in {"none": (), "1": (1,), "2": (2,)}.items():
        result = build_decoder("sejd", tau=0.01, sequential_layers=choice).decode(subject.flow, latents, labels)
        assert sets[name]["depth"] == result.depth
        assert sets[name]["iterations"] == result.depth - len(choice) * (L - 1)
        assert sets[name]["token_evaluations"] == result.token_evaluations
    alone = {row["layer"]: row for row in tables["layer_costs"]}
    assert alone[1]["deviation_rmse"] == sets["2"]["deviation_rmse"] > 0  # layer 1 by iteration is 2 alone sequential
    kept = [row["layer"] for row in tables["layer_choice"] if row["kept"]]
    assert kept == list(build_decoder("sejd", tau=0.01, select="measured").bind(subject.flow, 3).sequential_layers)


def test_of_a_few_choices_the_measured_one_is_among_those_timed(subject):
    tables = measured(subject, "layers", batches="2", rounds=1, choices="few", tau=0.01)
    kept = "+".join(str(row["layer"]) for row in tables["layer_choice"] if row["kept"])
    assert {row["sequential_layers"] for row in tables["layer_set_rounds"]} == {"none", "1", kept, "1+2"}
    assert subsets(4, few=True) == [one for one in subsets(4) if len(one) != 2] and len(subsets(4)) == 16
    last = {row["layer"]: row for row in tables["layer_errors"]}
    assert list(last) == [1, 2] and all(row["error_rms"] < row["residual"] <= 0.01 for row in last.values())
    known = {row["layer"]: row["gain"] for row in tables["layer_choice"]}
    assert {layer: row["gain"] for layer, row in last.items()} == known


def test_a_choice_rests_on_as_many_samples_as_asked_for_in_whole_batches(subject):
    def rows(**options):
        found = measured(subject, "layers", rounds=1, best=1, **options)["layer_sets"]
        return {row["sequential_layers"]: row for row in found}

    one, whole, most = rows(batches="2"), rows(batches="2", samples=3), rows(batches="4")
    assert (one["none"]["samples"], whole["none"]["samples"]) == (2, 4)
    for name in ("none", "1"):  # batches stop by themselves, so that the means are not those of a batch of four
        assert one[name]["deviation_rmse"] != whole[name]["deviation_rmse"]
        assert whole[name]["deviation_max"] >= one[name]["deviation_max"]
        assert whole[name]["depth"] <= most[name]["depth"]


def test_a_choices_seconds_are_the_sum_of_its_layers_medians(subject):
    tables = measured(subject, "layers", batches="2", rounds=1)
    seconds = {row["layer"]: row for row in tables["layer_seconds"]}
    sets = {row["sequential_layers"]: row["predicted_s"] for row in tables["layer_sets"]}
    assert sets["1"] == pytest.approx(seconds[1]["sequential_s"] + seconds[2]["jacobi_s"])
    assert {row["sequential_layers"] for row in tables["layer_set_rounds"]} == {"none", "1", "2", "1+2"}
    assert all(row["sequential_s"] > 0 for row in tables["layer_set_rounds"])


def test_gain_scales_what_the_shift_takes_from_other_tokens_and_nothing_else(subject):
    layer, twice = subject.flow.layers[0], amplified(subject.flow, 2.0).layers[0]
    tokens = torch.randn(2, 2, L - 1, layer.token_dim)
    condition = subject.flow.condition(2)
    (scale_a, shift_a), (scale_b, shift_b) = (layer.affine(part, None, 0, condition) for part in tokens)
    (same_a, double_a), (same_b, double_b) = (twice.affine(part, None, 0, condition) for part in tokens)
    assert torch.equal(scale_a, same_a) and torch.equal(scale_b, same_b)
    assert torch.allclose(double_a - double_b, 2 * (shift_a - shift_b), atol=1e-6)
    assert not torch.allclose(shift_a, shift_b)


def test_iterations_are_those_of_ujd(subject):
    rows = measured(subject, "coupling", gains="1", batches="4", tau=0.01)["couplings"]
    traces = build_decoder("ujd", tau=0.01).decode(subject.flow, *subject.samples(range(4))).layers
    assert [row["iterations"] for row in rows] == [trace.iterations for trace in traces]
    assert [row["layer"] for row in rows] == [1, 2]


def test_a_round_of_cost_is_an_iteration_and_a_layer_of_one_flow(subject):
    rows = measured(subject, "cost", batches="1,2", rounds=2, most_tokens=L)["costs"]
    assert [(row["batch_size"], row["round"]) for row in rows] == [(1, 0), (1, 1)]  # batch 2 holds too many tokens
    assert all(row["iteration_s"] > 0 and row["sequential_s"] > 0 for row in rows)


def test_memory_counts_cache_weights_and_tensors(subject):
    rows = measured(subject, "memory", batches="3", decoders="sequential,ujd max_iterations=2 fallback=leave")
    sequential, ujd = rows["memory_scaling"]
    layer = subject.flow.layers[0]
    assert sequential["cache_bytes"] == layer.new_cache(3, subject.flow.condition(3)).nbytes
    assert ujd["cache_bytes"] == 0 and ujd["window"] == L - 1 and sequential["window"] == 1
    assert sequential["live_bytes"] > sequential["cache_bytes"]
    assert sequential["weights_bytes"] == sum(tensor.nbytes for tensor in subject.flow.state_dict().values())
    assert {row["status"] for row in rows["memory_scaling"]} == {"ok"} and {
        row["heads"] for row in (sequential, ujd)
    } == {1}


def test_a_flow_of_another_family_is_refused():
    other = Subject.of(checkpoint_path("maf-breast-cancer"), "maf", seed=0, device="cpu", dataset="breast-cancer")
    for name in ("memory", "cost", "coupling"):
        with pytest.raises(HarnessError, match="TarFlow"):
            build_probe(name).units(other.load(), other)
