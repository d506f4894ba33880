"""Training for fast decoding: the error that is added to the likelihood, what attention does not see, other shapes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_training import TINY, losses, run, small_flow, target

from harness.cli.fit import _settings
from harness.datasets import load_dataset
from harness.errors import CheckpointError, HarnessError
from harness.flows import load_flow
from harness.flows.calls import encode_tokens
from harness.flows.tarflow import TarFlow, TarFlowConfig, negative_log_likelihood
from harness.measure.probes.shapes import network_columns
from harness.training.config import TarFlowTraining
from harness.training.inversion import inversion_error


def pairs(flow, images):
    """Every layer with its input and output."""
    found = []
    condition = flow.condition(len(images))
    encode_tokens(flow.layers, flow.to_tokens(images), condition, lambda *pair: found.append((*pair, condition)))
    return found


def mean_error(flow, images, iterations=1):
    return float(torch.stack([inversion_error(*pair, iterations) for pair in pairs(flow, images)]).mean())


def test_what_is_seen_is_what_a_decoder_gets_and_should_find() -> None:
    flow = small_flow().double()
    for layer, inputs, exact, condition in pairs(flow, torch.randn(5, 1, 4, 4, dtype=torch.float64)):
        assert float(inversion_error(layer, inputs, exact, condition, 1)) > 1e-6
        exactly = layer.num_tokens - 1  # iterations after which nothing is left (SeJD, Prop. 3.2)
        assert float(inversion_error(layer, inputs, exact, condition, exactly)) < 1e-20


class Rescaled:
    """A layer whose numbers are told in other units: each its own scale and offset."""

    def __init__(self, layer, scale, offset):
        self.layer, self.scale, self.offset = layer, scale, offset

    def update(self, inputs, tokens, cache, start, condition):
        inner = [(part - self.offset[: part.shape[1]]) / self.scale[: part.shape[1]] for part in (inputs, tokens)]
        return self.layer.update(*inner, cache, start, condition) * self.scale[1:] + self.offset[1:]


def test_no_scale_and_no_offset_of_any_number_changes_the_error() -> None:
    flow = small_flow().double()
    for layer, inputs, exact, condition in pairs(flow, torch.randn(6, 1, 4, 4, dtype=torch.float64)):
        scale = torch.rand(exact.shape[1:], dtype=torch.float64) * 9 + 0.1
        offset = torch.randn(exact.shape[1:], dtype=torch.float64) * 7
        other = Rescaled(layer, scale, offset)
        expected = inversion_error(layer, inputs, exact, condition, 2)
        found = inversion_error(other, inputs * scale + offset, exact * scale + offset, condition, 2)
        assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_by_default_the_loss_is_the_likelihood_to_the_last_bit() -> None:
    training = target(load_dataset("digits", "train"))
    torch.manual_seed(0)
    flow = TarFlow(training.shape)
    torch.nn.init.normal_(flow.blocks[0].proj_out.weight, std=0.05)
    images, labels = training.batch(0)
    gradients = []
    for loss in (training.loss(flow, images, labels), negative_log_likelihood(*flow.encode(images, labels))):
        flow.zero_grad()
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad.clone() for parameter in flow.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@torch.no_grad()
def test_the_nearest_predecessors_are_dropped_for_half_of_a_batch() -> None:
    training = target(load_dataset("digits", "train"), drop_nearest=2, patch=2, label_drop=0.0)
    torch.manual_seed(0)
    flow = TarFlow(training.shape)
    torch.nn.init.normal_(flow.blocks[1].proj_out.weight, std=0.05)
    images, labels = training.batch(0)
    condition = flow.mask_attention(flow.condition(2, labels[:2]), range(2))
    masked = negative_log_likelihood(*encode_tokens(flow.layers, flow.to_tokens(images[:2]), condition))
    seen = negative_log_likelihood(*flow.encode(images[2:], labels[2:]))
    assert float(training.loss(flow, images, labels)) == pytest.approx(float((masked + seen) / 2), rel=1e-5)
    everything = negative_log_likelihood(*flow.encode(images, labels))
    assert float(training.loss(flow, images, labels)) != pytest.approx(float(everything), rel=1e-5)


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_flow_trained_for_it_is_easier_to_invert_and_worth_less(tmp_path: Path, iterations: int) -> None:
    changes = {"steps": 60, "batch_size": 16, "patch": 2, "learning_rate": 5e-3, "ema": 0.9, "evaluate_every": 60}
    given = {"decode_weight": 10, "decode_iterations": iterations}
    releases = [run(tmp_path / f"{i}", **changes, **more) for i, more in enumerate(({}, given))]
    published, aware = (load_flow(release / "tiny.safetensors") for release in releases)
    images = load_dataset("digits", "test").scaled(slice(64))
    with torch.no_grad():
        assert mean_error(aware, images, iterations) < 0.5 * mean_error(published, images, iterations)
        assert negative_log_likelihood(*aware.encode(images)) > negative_log_likelihood(*published.encode(images))
    twice = [run(tmp_path / name, **changes | {"steps": 6}, **given).parent for name in ("one", "two")]
    assert losses(twice[0]) == losses(twice[1])


def test_a_resume_may_not_change_what_is_learned() -> None:
    def plan(**changes: object) -> TarFlowTraining:
        return TarFlowTraining.model_validate(TINY | changes)

    for key in ("decode_weight", "drop_nearest", "turn_every"):
        assert plan().difference(plan(**{key: 2}), done=3) == key
    assert plan(layers=[1]).difference(plan(), done=3) is None


def test_a_flow_of_another_shape_is_loaded_as_it_was_trained(tmp_path: Path) -> None:
    changes = {"blocks": 4, "layers": [2, 1], "turn_every": 2, "label_drop": 0.0}
    flow = load_flow(run(tmp_path, **changes) / "tiny.safetensors")
    assert isinstance(flow, TarFlow)
    assert [len(block.attn_blocks) for block in flow.blocks] == [2, 1, 1, 1]
    assert [block.reverse for block in flow.blocks] == [False, False, True, True]
    assert (flow.config.layers_per_block, flow.config.turn_every) == ((2, 1, 1, 1), 2)
    with pytest.raises(HarnessError, match="needs blocks of one depth"):
        network_columns(flow)
    assert "4-64-4-2/1" in (tmp_path / "release" / "tiny.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("turn_every", ["0", "-1", "two", "²"])
def test_an_order_that_cannot_be_is_a_sentence(tmp_path: Path, turn_every: str) -> None:
    save_file(small_flow().state_dict(), tmp_path / "odd.safetensors", {"turn_every": turn_every})
    with pytest.raises(CheckpointError, match="the order turns every .* blocks, expected 1 or more"):
        load_flow(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": [1, 1, 1]}, "layers are given for 3 blocks of 2"),
        ({"layers": []}, "at least 1 item"),
        ({"decode_weight": -1}, "greater than or equal to 0"),
        ({"decode_weight": 1, "batch_size": 2}, "batch_size of 4 or more"),
        ({"decode_weight": 1, "drop_nearest": 1, "batch_size": 4}, "batch_size of 8 or more"),
        ({"decode_iterations": 3}, "less than or equal to 2"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TarFlowTraining.model_validate(TINY | changes)


def test_more_cannot_be_dropped_than_there_is() -> None:
    with pytest.raises(HarnessError, match="drop_nearest = 4 leaves nothing of 4 tokens"):
        target(load_dataset("digits", "train"), drop_nearest=4)
    with pytest.raises(HarnessError, match="layers per block are given for 2 blocks of 3"):
        TarFlowConfig(image_channels=1, image_size=4, patch=2, channels=64, blocks=3, layers_per_block=(1, 1))


def test_any_key_of_a_configuration_is_set_on_the_command_line() -> None:
    assert _settings(("decode_weight=0.1", "layers=[2, 1]", "dataset = digits"), {"steps": 3, "seed": None}) == {
        "steps": 3,
        "decode_weight": 0.1,
        "layers": [2, 1],
        "dataset": "digits",
    }
    for wrong in ("decode_weight", "=3", "a b=1"):
        with pytest.raises(HarnessError, match="should read key=value"):
            _settings((wrong,), {})
    for options, given in (({"steps": 3}, ("steps=4",)), ({}, ("sigma=1", "sigma=2"))):
        with pytest.raises(HarnessError, match="a second time"):
            _settings(given, options)
    assert json.loads(TarFlowTraining.model_validate(TINY | {"layers": 2}).model_dump_json())["layers"] == [2]
