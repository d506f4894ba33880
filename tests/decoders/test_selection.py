"""SeJD that selects: the measured choice finds the tough layer, is stored, and costs what the paper's does."""

import re

import pytest
import torch
from safetensors.torch import save_file

from harness.contract import CLAUSES, Case, examine
from harness.decoders import build_decoder
from harness.decoders.exact import ExactBatch
from harness.decoders.selection import LayerErrors, Selection, find_selection
from harness.errors import HarnessError
from harness.fitting import prepare
from harness.fitting.selection import measure_selection
from harness.flows import load_flow
from harness.flows.coupled import coupled_tarflow

TOUGH = 3


def made(tough=TOUGH):
    """A flow of four layers, one of them with tokens that depend strongly on each other, the others weakly."""
    flow = coupled_tarflow(seed=1, blocks=4)
    for layer in flow.layers:
        if layer.number != tough:
            layer.proj_out.weight *= 0.1
    return flow


@pytest.fixture(scope="module")
def flow():
    made_flow = made()
    prepare(build_decoder("sejd", select="measured"), made_flow, 4, report=lambda sentence: None)
    return made_flow


@pytest.fixture
def checkpoint(flow, tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in flow.state_dict().items()}, tmp_path / "flow.safetensors")
    return tmp_path / "flow.safetensors"


def kept(selection, batch=4, **options):
    return tuple(choice.layer for choice in selection.choices(0.5, batch, **options) if choice.kept)


def deviation(flow, **options):
    batch = ExactBatch.draw(flow, 16, torch.Generator().manual_seed(5))
    return float(batch.squared(build_decoder("sejd", tau=0.5, **options)).mean().sqrt())


@pytest.mark.parametrize("tough", [1, 2, 3, 4])
def test_the_made_tough_layer_is_found(tough):
    assert kept(measure_selection(made(tough)), 8) == (tough,)


def test_the_measured_choice_is_decoded_sequentially_and_deviates_less_than_the_first(flow):
    result = build_decoder("sejd", select="measured").decode(flow, flow.sample_latents(4, torch.Generator()))
    assert [trace.layer for trace in result.layers if trace.exact] == [TOUGH]
    assert deviation(flow, select="measured") == deviation(flow, sequential_layers=[TOUGH]) < deviation(flow) / 2


def test_iterations_residuals_and_what_is_left_are_those_of_the_decoder(flow):
    batch = ExactBatch.draw(flow, 32, torch.Generator().manual_seed(0))
    others = [n for n in range(1, 5) if n != TOUGH]
    result = batch.result(build_decoder("sejd", sequential_layers=others, fallback="leave"))
    (trace,) = (trace for trace in result.layers if trace.layer == TOUGH)
    chosen = measure_selection(flow).choices(0.5, 32)[TOUGH - 1]
    assert chosen.iterations == trace.iterations and chosen.calls == flow.num_tokens - 1 - trace.iterations
    assert chosen.deviation == pytest.approx(float((result.tokens - batch.exact).square().mean().sqrt()), rel=1e-3)
    residuals = [max(norms) for norms in measure_selection(flow).layers[TOUGH - 1].residuals[: trace.iterations]]
    assert residuals == pytest.approx(trace.residuals, rel=1e-3)
    by_themselves = batch.decode(build_decoder("sejd", sequential_layers=others, fallback="leave"), 1)
    (alone,) = (choice for choice in measure_selection(flow).choices(0.5, 1) if choice.layer == TOUGH)
    left = float((by_themselves - batch.exact).square().mean().sqrt())
    assert chosen.deviation < alone.deviation and alone.deviation == pytest.approx(left, rel=0.2)  # the gain is linear


@pytest.mark.parametrize("clause", CLAUSES)
def test_it_keeps_every_clause_of_the_contract(flow, clause):
    finding = examine(clause, Case("sejd", flow, "made", options={"select": "measured"}))
    assert finding.outcome in ("passed", "not applicable"), finding.evidence


def selection(*errors, num_tokens=64, iterations=()):
    """Four samples of which one stops an iteration later than the others."""
    layers = []
    for n, error in enumerate(errors, 1):
        count = iterations[n - 1] if iterations else 4
        residuals = (*[(1.0,) * 4] * (count - 1), (0.1, 0.1, 0.1, 0.7), (0.0,) * 4)
        layers.append(LayerErrors(n, 9 - n, residuals, ((error**2,) * 4,) * (count + 1), 1.0))
    return Selection("", 4, num_tokens, tuple(layers))


def test_as_many_layers_are_kept_as_cost_what_one_costs():
    assert kept(selection(0.1, 0.3, 0.2)) == (2,)
    assert kept(selection(0.0, 0.0)) == (1,)  # the paper's, where nothing tells
    slow = selection(0.1, 0.3, 0.2, num_tokens=18, iterations=(4, 14, 14))
    assert kept(slow) == (2, 3)  # 2 + 2 calls more; layer 1 alone is 12
    assert kept(selection(0.3, 0.1), max_iterations=2) == (1,)
    assert [choice.iterations for choice in selection(0.1).choices(0.5, 1)] == [4.25]
    assert [choice.iterations for choice in selection(0.1).choices(0.5, 2)] == [4.5]


def test_it_is_stored_beside_a_checkpoint_read_again_and_part_of_a_cells_identity(checkpoint):
    loaded, decoder = load_flow(checkpoint), build_decoder("sejd", select="measured")
    assert find_selection(loaded) is None and decoder.missing(loaded, 4) == ["what iteration leaves of each layer"]
    with pytest.raises(HarnessError, match="not measured yet: run `harness calibrate"):
        decoder.decode(loaded, loaded.sample_latents(2, torch.Generator()))
    prepare(decoder, loaded, 4, report=lambda sentence: None)
    again = load_flow(checkpoint)
    assert decoder.missing(again, 4) == [] and find_selection(again) == measure_selection(loaded)
    assert str((TOUGH,)) in decoder.fits_digest(again, 4)
    assert build_decoder("sejd").fits_digest(again, 4) is None and not build_decoder("sejd").reads_fits
    (stored,) = (checkpoint.parent / "calibration").glob("*-layers.json")
    text = stored.read_text()
    empty, negative = (re.sub(r'"errors": \[\[.*?\]\]', f'"errors": {rows}', text) for rows in ("[]", "[[-1.0]]"))
    both = re.sub(r'"residuals": \[\[.*?\]\]', '"residuals": []', empty, count=1)
    for damaged in ("{}", text[:-9], text.replace('"samples": 32', '"samples": 31'), empty, both, negative):
        stored.write_text(damaged)
        with pytest.raises(HarnessError, match="does not say what layers leave"):
            find_selection(load_flow(checkpoint))
    stored.write_text(text.replace(find_selection_digest(text), "0" * 64))
    with pytest.raises(HarnessError, match="measured on another checkpoint"):
        find_selection(load_flow(checkpoint))


def find_selection_digest(text):
    return text.partition('"digest": "')[2][:64]


def test_both_ways_of_choosing_are_refused_together():
    with pytest.raises(HarnessError, match="leave sequential_layers out"):
        build_decoder("sejd", select="measured", sequential_layers=[2])
