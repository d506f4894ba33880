import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.measure import expand as plan
from harness.measure.cells import groups
from harness.measure.matrix import Filter, Matrix

TAUS = st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0, 2]), min_size=1, max_size=3)
BATCHES = st.lists(st.integers(1, 64), min_size=1, max_size=3)
SEEDS = st.lists(st.integers(0, 2**40), min_size=1, max_size=2)
DECODERS = st.lists(
    st.sampled_from(
        [
            {"name": "sequential"},
            {"name": "ujd"},
            {"name": "ujd", "initial": {"grid": ["input", "zeros"]}, "scope": "sample"},
            {"name": "sejd", "tau": [0.3, 0.7]},
            {"name": "sejd", "label": "two", "sequential_layers": [1, 2]},
        ]
    ),
    min_size=1,
    max_size=4,
    unique_by=json.dumps,
)
GUIDANCE = st.lists(st.sampled_from([{"scale": 0.0}, {"scale": 1.5}, {"scale": 1.5, "annealed": True}]), min_size=1)


@pytest.fixture(scope="module")
def make(tiny_checkpoint):
    def make(decoders, tau=(0.5,), batch_sizes=(1,), seeds=(0,), guidance=({"scale": 0.0},), **more):
        grid = {"tau": list(tau), "batch_sizes": list(batch_sizes), "seeds": list(seeds), "guidance": list(guidance)}
        dataset = {"name": "digits", "checkpoint": str(tiny_checkpoint)}
        raw = {"name": "m", "device": "cpu", "datasets": [dataset], "decoders": decoders, "grid": grid, **more}
        return Matrix.model_validate(raw)

    return make


@settings(deadline=None, max_examples=40)
@given(decoders=DECODERS, tau=TAUS, batches=BATCHES, seeds=SEEDS, guidance=GUIDANCE, order=st.randoms())
def test_cells_are_unique_and_do_not_depend_on_any_order(make, decoders, tau, batches, seeds, guidance, order):
    cells = plan.expand(make(decoders, tau, batches, seeds, guidance))
    assert len({cell.cell_id for cell in cells}) == len(cells) == len({cell.cell_key for cell in cells})
    facts = {
        (cell.decoder, cell.options, cell.tau, cell.batch_size, cell.seed, cell.guidance, cell.label) for cell in cells
    }
    assert len(facts) == len(cells)
    shuffled = [order.sample(values, len(values)) for values in (decoders, tau, batches, seeds, guidance)]
    assert set(plan.expand(make(*shuffled))) == set(cells)


@settings(deadline=None, max_examples=40)
@given(tau=TAUS, batches=BATCHES, seeds=SEEDS)
def test_the_product_is_complete(make, tau, batches, seeds):
    decoders = [{"name": "sequential"}, {"name": "ujd"}, {"name": "sejd", "initial": {"grid": ["zeros", "normal"]}}]
    cells = plan.expand(make(decoders, tau, batches, seeds))
    per_group = 1 + 3 * len(set(tau))
    assert len(cells) == per_group * len(set(batches)) * len(set(seeds))
    assert {len(members) for members in groups(cells).values()} == {per_group}
    assert {(cell.decoder, cell.tau is None) for cell in cells} == {
        ("sequential", True),
        ("ujd", False),
        ("sejd", False),
    }


FILTERS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "decoder": st.sampled_from(["ujd", "sejd", ["ujd", "sequential"]]),
            "tau": st.sampled_from([0.1, 0.5, [0.1, 0.5]]),
            "batch_size": st.sampled_from([1, 2, [2, 4]]),
        },
    ).filter(bool),
    max_size=2,
)


@settings(deadline=None, max_examples=40)
@given(include=FILTERS, exclude=FILTERS)
def test_filters_keep_exactly_what_they_say(make, include, exclude):
    decoders = [{"name": "sequential"}, {"name": "ujd"}, {"name": "sejd"}]
    everything = plan.expand(make(decoders, [0.1, 0.5], [1, 2, 4]))

    def named(cell, entries):
        def has(value, wanted):
            return value in wanted if isinstance(wanted, list) else value == wanted

        return any(all(has(getattr(cell, key), value) for key, value in entry.items()) for entry in entries)

    wanted = {cell for cell in everything if (not include or named(cell, include)) and not named(cell, exclude)}
    matrix = make(decoders, [0.1, 0.5], [1, 2, 4], include=include, exclude=exclude)
    if wanted:
        assert set(plan.expand(matrix)) == wanted
    else:
        with pytest.raises(HarnessError, match="leave no cell"):
            plan.expand(matrix)


def test_a_filter_without_fields_names_everything():
    assert Filter().matches({})


def test_default_options_change_no_key_and_are_all_recorded(make):
    (bare,) = plan.expand(make([{"name": "ujd"}]))
    (spelled,) = plan.expand(make([{"name": "ujd", "initial": "zeros", "norm": "inf"}]))
    assert bare == spelled
    assert json.loads(bare.options)["initial"] == "zeros" and "tau" not in json.loads(bare.options)


def test_the_code_version_is_part_of_the_id_and_not_of_the_key(make, monkeypatch):
    (before,) = plan.expand(make([{"name": "ujd"}]))
    monkeypatch.setattr(plan, "source_version", lambda cls: "another")
    (after,) = plan.expand(make([{"name": "ujd"}]))
    assert before.cell_key == after.cell_key and before.group_id == after.group_id
    assert before.cell_id != after.cell_id


def test_a_decoder_from_outside_has_its_own_source_in_its_code_version(make):
    inside, outside = plan.expand(make([{"name": "sequential"}, {"name": "broken_decoders:Raises"}]))
    assert inside.code_version != outside.code_version


def test_every_part_of_the_identity_changes_the_key(make, tiny_checkpoint):
    base = {"decoders": [{"name": "ujd"}]}
    changed = [
        {},
        {"decoders": [{"name": "sejd"}]},
        {"decoders": [{"name": "ujd", "norm": "rms"}]},
        {"tau": [0.4]},
        {"batch_sizes": [2]},
        {"seeds": [1]},
        {"guidance": [{"scale": 1.0}]},
        {"dtype": "float64"},
        {"datasets": [{"name": "another", "checkpoint": str(tiny_checkpoint)}]},
    ]
    keys = [plan.expand(make(**(base | change)))[0].cell_key for change in changed]
    assert all(a != b for a, b in itertools.combinations(keys, 2))


def test_a_moved_checkpoint_is_the_same_cell_and_a_changed_one_is_not(make, tiny_checkpoint, tmp_path):
    def key(path):
        (cell,) = plan.expand(make([{"name": "ujd"}], datasets=[{"name": "digits", "checkpoint": str(path)}]))
        return cell.cell_key

    moved, changed = tmp_path / "moved.safetensors", tmp_path / "changed.safetensors"
    moved.write_bytes(tiny_checkpoint.read_bytes())
    damaged = bytearray(tiny_checkpoint.read_bytes())
    damaged[-1] ^= 1
    changed.write_bytes(damaged)
    assert key(moved) == key(tiny_checkpoint) != key(changed)


@pytest.mark.parametrize(
    ("decoders", "sentence"),
    [
        ([{"name": "sejdd"}], "unknown decoder 'sejdd'; did you mean 'sejd'"),
        ([{"name": "sejd", "initail": "zeros"}], "did you mean 'initial'"),
        ([{"name": "sejd", "initial": "nought"}], "unknown initial 'nought'"),
        ([{"name": "sejd", "initial": {"grid": ["zeros", "nought"]}}], "unknown initial 'nought'"),
        ([{"name": "sejd", "initial": {"gird": ["zeros"]}}], "{ grid = [...] }"),
        ([{"name": "sequential", "tau": [0.5]}], "takes no tau"),
        ([{"name": "absent_module:Thing"}], "cannot import decoder"),
        ([{"name": "ujd", "label": "x"}, {"name": "sejd", "label": "x"}], "labelled 'x'"),
    ],
)
def test_decoders_are_checked_before_anything_runs(make, decoders, sentence):
    with pytest.raises(HarnessError) as caught:
        plan.expand(make(decoders))
    assert sentence in str(caught.value)


def test_labels_tell_variants_apart(make):
    decoders = [
        {"name": "ujd"},
        {"name": "ujd", "norm": "rms"},
        {"name": "sejd", "label": "paper", "initial": {"grid": ["zeros", "input"]}},
    ]
    labels = [cell.label for cell in plan.expand(make(decoders))]
    assert labels == ["ujd", "ujd norm=rms", "paper initial=zeros", "paper initial=input"]


def test_a_cell_builds_what_it_names(make):
    (cell,) = plan.expand(make([{"name": "sejd", "sequential_layers": [1, 2], "tau": 0.2}], guidance=[{"scale": 2.0}]))
    decoder, guidance = cell.build(), cell.build_guidance()
    assert (decoder.tau, tuple(decoder.sequential_layers)) == (0.2, (1, 2))
    assert (guidance.scale, guidance.components) == (2.0, "ab")
    assert Path(cell.checkpoint_path).is_file()


def test_what_a_decoder_reads_is_part_of_its_identity_but_not_of_its_key(make, tiny_checkpoint):
    from harness.fitting.calibrate import store_calibration
    from harness.flows import load_flow

    def cells():
        return {cell.label: cell for cell in plan.expand(make([{"name": "fitted"}, {"name": "ujd"}]))}

    assert cells()["fitted"].fitted is None  # nothing was fitted yet, and planning does not
    store_calibration(load_flow(tiny_checkpoint), samples=40, seed=8)
    before, again = cells(), cells()
    assert before["fitted"].fitted and before == again
    store_calibration(load_flow(tiny_checkpoint), samples=40, seed=9)
    after = cells()
    assert after["fitted"].cell_id != before["fitted"].cell_id
    assert after["fitted"].cell_key == before["fitted"].cell_key
    assert after["ujd"] == before["ujd"] and after["ujd"].fitted is None
