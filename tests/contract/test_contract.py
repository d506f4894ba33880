"""The contract over every registered decoder, and decoders that break it.

A decoder that is registered is covered: nothing here names one.
"""

import pytest
import torch

from harness.contract import CLAUSES, Case, check, default_flows, examine
from harness.contract.checking import CONTRACT_FLOWS
from harness.decoders import build_decoder, decoders
from harness.errors import HarnessError
from harness.flows import load_flow

SMALL = "coupled-classes"


@pytest.fixture(scope="module", autouse=True)
def _fitted_on_few_samples(tmp_path_factory):
    """What decoders read is made quickly here, and not left among the user's own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patched.setattr("harness.fitting.tune.SAMPLES", 32)
        patched.setattr("harness.fitting.trials.MOST_ROUNDS", 5)
        patched.setattr("harness.fitting.calibrate.DENSE_SAMPLES", 256)
        patched.setattr("harness.fitting.learned.STEPS", 60)
        yield


@pytest.fixture(scope="module")
def flows():
    made = {name: make(0) for name, make in CONTRACT_FLOWS.items()}
    return made | {name: load_flow(name) for name in set(default_flows()) - set(made)}


def cases():
    """Every decoder on every clause of the small flows; of the shipped one, those that its own numbers could break."""
    for decoder in decoders.names():
        yield from ((decoder, clause, flow) for flow in CONTRACT_FLOWS for clause in CLAUSES)
        for flow in set(default_flows()) - set(CONTRACT_FLOWS):
            yield from ((decoder, clause, flow) for clause in ("exact", "batch"))
            yield pytest.param(decoder, "trace", flow, marks=pytest.mark.slow)  # a decoder may tune itself first


@pytest.mark.parametrize(("decoder", "clause", "flow"), list(cases()))
def test_every_registered_decoder_keeps_every_clause(decoder, clause, flow, flows):
    finding = examine(clause, Case(decoder, flows[flow], flow))
    if finding.outcome == "not applicable":
        pytest.skip(finding.evidence)
    assert finding.outcome == "passed", finding.evidence


@pytest.mark.parametrize("clause", CLAUSES)
@pytest.mark.parametrize(
    ("decoder", "windows"), [("fitted", {}), ("sejd", {}), ("frontier", {"window": 4, "advance": 2})]
)
def test_learned_corrections_keep_every_clause(decoder, windows, clause, flows):
    """Other kinds of windows than these are in the tests of the fits."""
    options = {"initial": "fitted", "correction": "learned", **windows}
    finding = examine(clause, Case(decoder, flows[SMALL], SMALL, options=options))
    if finding.outcome == "not applicable":
        pytest.skip(finding.evidence)
    assert finding.outcome == "passed", finding.evidence


@pytest.mark.parametrize(
    ("cheater", "broken"),
    [
        ("Stored", {"exact", "batch", "condition", "certificate"}),
        ("UnderReports", {"trace"}),
        ("UnderReportsDepth", {"trace"}),
        ("WrongOrder", {"trace"}),
        ("SpoilsLatents", {"untouched"}),
        ("SilentNaN", {"finite"}),
        ("EmitsNaN", {"exact", "batch", "finite", "condition", "memory", "certificate"}),
        ("Moody", {"deterministic", "batch", "memory", "trace"}),
        ("ClaimsConvergence", {"exact", "prefix", "condition"}),
        ("LateByOne", {"prefix"}),
        ("Crowded", {"batch"}),
        ("IgnoresGuidance", {"condition"}),
        ("Tireless", {"bounds"}),
        ("Cropped", {"shapes"}),
        ("SeesTheTap", {"trace", "memory", "certificate"}),
        ("ClaimsLittle", {"memory"}),
        ("Flatters", {"certificate"}),
        ("Raises", set(CLAUSES) - {"prefix"}),
    ],
)
def test_a_cheater_is_caught_on_the_right_clause(cheater, broken, flows, monkeypatch):
    monkeypatch.setitem(CONTRACT_FLOWS, SMALL, lambda seed: flows[SMALL])  # what is fitted to it is fitted once
    findings = list(check(f"cheaters:{cheater}", flows=[SMALL]))
    assert {finding.clause for finding in findings if finding.outcome == "failed"} == broken
    assert all(finding.evidence and "\n" not in finding.evidence for finding in findings)


def test_evidence_names_claim_and_count():
    (finding,) = check("cheaters:UnderReports", flows=[SMALL], only=["trace"])
    assert "claims" in finding.evidence and "counted are" in finding.evidence


def test_a_layer_left_inexact_by_option_passes_only_if_it_says_so():
    capped = {"max_iterations": 2, "fallback": "leave"}
    (finding,) = check("ujd", flows=[SMALL], only=["exact"], options=capped)
    assert finding.outcome == "passed" and "fallback='leave' allows" in finding.evidence


def test_redecoding_is_allowed_beyond_the_bound():
    (finding,) = check("ujd", flows=[SMALL], only=["bounds"], options={"max_iterations": 14})
    assert finding.outcome == "passed"


def test_another_seed_is_another_case():
    first, second = (Case("ujd", CONTRACT_FLOWS[SMALL](0), seed=seed) for seed in (0, 1))
    assert not torch.equal(first.latents, second.latents)
    assert torch.equal(first.latents, first.latents)


def test_jacobi_has_work_to_do_on_the_flows_of_the_contract():
    for make in CONTRACT_FLOWS.values():
        flow = make(0)
        result = build_decoder("ujd", tau=1e-4).decode(flow, Case("ujd", flow).latents)
        assert min(trace.iterations for trace in result.layers) >= 8


@pytest.mark.parametrize(
    "wrong", [{"decoder": "sejdd"}, {"decoder": "ujd", "only": ["exakt"]}, {"decoder": "ujd", "flows": ["nowhere"]}]
)
def test_bad_input_is_one_sentence(wrong):
    with pytest.raises(HarnessError):
        list(check(**wrong))
