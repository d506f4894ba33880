"""Leaving predecessors out: what a reading forbids has no influence left, and where one leaks, it is known how."""

from functools import partial

import pandas as pd
import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.decoders.exact import ExactBatch
from harness.decoders.sequential import solve_sequential
from harness.errors import HarnessError
from harness.flows.tarflow import TarFlow, TarFlowConfig
from harness.measure.probes.probe import build_probe
from harness.measure.probes.redundancy import leak
from harness.measure.probes.restrictions import READINGS, restriction
from harness.measure.run_probe import run_probe
from harness.progress import LineReporter

L, D = 16, 1


@pytest.fixture
def flow():
    config = TarFlowConfig(image_channels=1, image_size=4, patch=1, channels=64, blocks=2, layers_per_block=3)
    flow = TarFlow(config).double().requires_grad_(False).eval()
    for block in flow.blocks:
        block.proj_out.weight.normal_(std=0.02)
    return flow


@pytest.fixture
def problems(flow):
    return list(ExactBatch(flow, torch.randn(3, L, D, dtype=torch.float64)).layers())


def jacobian(problem, restricted):
    """(L, D, L, D) of the restricted output with respect to the predecessors, forward through the cache's writes."""
    exact = problem.exact[:1]
    one = problem.select(torch.tensor([0]))
    columns = []
    with sdpa_kernel(SDPBackend.MATH):
        for place in range(L * D):
            direction = torch.zeros(L * D, dtype=exact.dtype)
            direction[place] = 1
            with forward_ad.dual_level():
                seed = forward_ad.make_dual(exact, direction.view(1, L, D))
                output = restricted.output(one.layer, one.inputs, seed, one.condition)
                tangent = forward_ad.unpack_dual(output).tangent
            columns.append(torch.zeros(L, D, dtype=exact.dtype) if tangent is None else tangent[0].clone())
    return torch.stack(columns, dim=-1).view(L, D, L, D)


def by_lag(jacobian):
    """Largest derivative of any token with respect to the one k before it, for k = 0..L-1."""
    size = jacobian.abs().amax(dim=(1, 3))
    return [float(size.diagonal(-lag).max()) for lag in range(L)]


@pytest.mark.parametrize("o", [1, 4])
def test_the_input_reading_removes_the_dependence_exactly(flow, problems, o):
    for problem in problems:
        sizes = by_lag(jacobian(problem, restriction(flow, "input", o)))
        assert sizes[: o + 1] == [0.0] * (o + 1)  # the o nearest, to the last bit
        assert min(sizes[o + 1 :]) > 0


@pytest.mark.parametrize("o", [1, 4])
def test_the_attention_reading_leaks_the_querys_own_token_and_no_other(flow, problems, o):
    for problem in problems:
        sizes = by_lag(jacobian(problem, restriction(flow, "attention", o)))
        assert sizes[0] == 0 and sizes[1] > 0.01
        assert sizes[2 : o + 1] == [0.0] * (o - 1)  # three transformer layers deep
        assert min(sizes[o + 1 :]) > 0


@pytest.mark.parametrize("o", [1, 4])
def test_with_the_diagonal_kept_the_o_before_the_querys_own_token_are_gone(flow, problems, o):
    for problem in problems:
        sizes = by_lag(jacobian(problem, restriction(flow, "attention-self", o)))
        assert sizes[1] > 0.01 and sizes[2 : o + 2] == [0.0] * o
        assert min(sizes[o + 2 :]) > 0


@pytest.mark.parametrize("reading", READINGS)
def test_nothing_left_out_is_the_layer_itself(flow, problems, reading):
    for problem in problems:
        restricted = restriction(flow, reading, 0)
        alone = restricted.output(problem.layer, problem.inputs, problem.exact, problem.condition)
        torch.testing.assert_close(alone, problem.exact)
        drawn = restricted.decode(problem.layer, problem.inputs, problem.condition)
        torch.testing.assert_close(drawn, problem.exact)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("o", [1, 2, 5, L - 1])
def test_a_drawn_layer_is_its_own_restricted_output(flow, problems, reading, o):
    """Token after token in small windows, or all at once from the finished tokens: the same."""
    problem, restricted = problems[0], restriction(flow, reading, o)
    drawn = restricted.decode(problem.layer, problem.inputs, problem.condition)
    again = restricted.output(problem.layer, problem.inputs, drawn, problem.condition)
    torch.testing.assert_close(again, drawn)
    assert (drawn - problem.exact).abs().max() > 1e-3


@pytest.mark.parametrize("reading", ["input", "attention-self"])
def test_what_is_left_out_may_be_anything(flow, problems, reading):
    problem, restricted, place, o = problems[1], restriction(flow, reading, 3), 9, 3
    last = place - (0 if reading == "input" else 1)
    spoilt = problem.exact.clone()
    spoilt[:, last - o : last] = 1e6
    output = partial(restricted.output, problem.layer, problem.inputs, condition=problem.condition)
    assert torch.equal(output(spoilt)[:, place], output(problem.exact)[:, place])
    assert not torch.equal(output(spoilt)[:, place + 1], output(problem.exact)[:, place + 1])


def test_the_leak_is_zero_where_the_dependence_is_removed_and_one_where_nothing_is(flow, problems):
    for problem in problems:
        for o in (1, 3):
            key = {"o": o, "reading": "input"}
            assert leak(problem, restriction(flow, "input", o), key) == 0
            assert leak(problem, restriction(flow, "attention-self", o), key | {"reading": "attention-self"}) == 0
            assert leak(problem, restriction(flow, "attention", o), key | {"reading": "attention"}) > 0.05
            assert leak(problem, restriction(flow, "input", 0), key) == pytest.approx(1)


def test_a_mask_under_a_cache_is_the_mask_of_the_whole(flow, problems):
    condition = flow.mask_attention(problems[0].condition, range(0, 3))
    layer, exact = problems[0].layer, problems[0].exact
    whole = layer.affine(exact[:, :-1], None, 0, condition)
    cache = layer.new_cache(len(exact), condition)
    parts = [layer.affine(exact[:, a:b], cache, a, condition) for a, b in ((0, 4), (4, 5), (5, L - 1))]
    for i in range(2):
        torch.testing.assert_close(torch.cat([part[i] for part in parts], dim=1), whole[i])
    assert flow.mask_attention(condition, range(0)).masked_lags is None


def test_the_command_writes_rows_fid_and_strips(tmp_path):
    probe = build_probe("redundancy", o=[0, 2], samples=6, batch=4)
    run = run_probe(probe, "digits", tmp_path / "run", LineReporter())
    rows = run.table("redundancy")
    assert len(rows) == 2 * 3 * 2 * 6 and (rows.num_samples == 6).all()
    none = rows[rows.o == 0]
    assert (none.cosine > 1 - 1e-9).all() and (none.l2_relative < 1e-5).all()
    some = rows[rows.o == 2]
    assert (some.cosine < 0.99999).all() and (some.l2_p10 <= some.l2).all() and (some.l2 <= some.l2_p90).all()
    with_fid = rows.dropna(subset="fid")
    assert len(with_fid) == 6 and set(with_fid.layer) == {6} and set(with_fid.scope) == {"all"}
    assert len(list((tmp_path / "run" / "redundancy").glob("digits_*_o0[02].png"))) == 6
    alone = some[some.scope == "layer"].set_index(["reading", "layer"]).leak.unstack()
    assert (alone.loc[["input", "attention-self"]] == 0).all(axis=None) and (alone.loc["attention"] > 0.1).all()


def test_a_flow_without_attention_has_the_input_reading_alone(tmp_path):
    pytest.importorskip("zuko")
    probe = build_probe("redundancy", o="0,1,5", samples=4)
    rows = run_probe(probe, "maf-breast-cancer", tmp_path / "run", LineReporter()).table("redundancy")
    assert set(rows.reading) == {"input"} and rows.fid.isna().all()
    alone = pd.Series(rows[(rows.scope == "layer") & (rows.o > 0)].leak)
    assert (alone == 0).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"readings": "atention"}, "did you mean 'attention'"),
        ({"scopes": "everywhere"}, "unknown scope"),
        ({"o": "0,64"}, "leaves nothing of 64 tokens"),
    ],
)
def test_what_cannot_be_left_out_is_a_sentence(tmp_path, options, words):
    with pytest.raises(HarnessError, match=words):
        run_probe(build_probe("redundancy", **options), "digits", tmp_path / "run", LineReporter())


def test_sequential_decoding_under_a_mask_is_one_more_condition(flow, problems):
    masked = flow.mask_attention(problems[0].condition, range(0, 2))
    tokens, trace = solve_sequential(problems[0].layer, problems[0].inputs, masked)
    assert trace.converged and not torch.allclose(tokens, problems[0].exact)
