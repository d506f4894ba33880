"""Flows from what a training script holds."""

import pytest
import torch
from torch import nn

from harness.decoders import build_decoder
from harness.errors import CheckpointError
from harness.flows import load_flow


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.fixture
def flow(tiny_checkpoint):
    return load_flow(tiny_checkpoint)


def test_a_state_dict_a_module_and_wrapped_ones_are_the_flow(flow):
    latents = flow.sample_latents(2, torch.Generator().manual_seed(0))
    wanted = build_decoder("ujd").decode(flow, latents).tokens
    state = flow.state_dict()
    compiled = {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}
    parameters = {name: nn.Parameter(tensor.clone()) for name, tensor in state.items()}
    for held in (
        state,
        flow,
        Wrapper(flow),
        Wrapper(Wrapper(flow)),
        compiled,
        parameters,
        {"model": state, "epoch": 3},
    ):
        found = load_flow(held)
        assert torch.equal(build_decoder("ujd").decode(found, latents).tokens, wanted)
        assert found.source is None and not any(weights.requires_grad for weights in found.parameters())
    assert load_flow(state, dtype=torch.bfloat16).layers[0].proj_out.weight.dtype == torch.bfloat16


def test_it_is_a_copy_so_that_training_may_go_on(flow):
    found = load_flow(flow)
    with torch.no_grad():
        flow.layers[0].proj_out.weight.zero_()
    assert found.layers[0].proj_out.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (3, "not from int"),
        (None, "not from NoneType"),
        ({}, "no flow of a known family"),
        (nn.Linear(2, 2), "no flow of a known family"),
        ({"model": {"a": 1}}, "no flow of a known family"),
    ],
)
def test_what_is_no_flow_is_told(held, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        load_flow(held)


def test_a_state_dict_that_lacks_a_tensor(flow):
    state = flow.state_dict()
    state.pop("blocks.1.proj_out.weight")
    with pytest.raises(CheckpointError, match="the state dict is not a checkpoint .* 1 tensors are missing"):
        load_flow(state)


def test_held_weights_are_chosen_and_refused_as_those_of_a_file(flow):
    state = flow.state_dict()
    both = {"model": state, "ema": {name: tensor * 0.5 for name, tensor in state.items()}}
    assert torch.equal(load_flow(both).layers[0].proj_out.weight, flow.layers[0].proj_out.weight * 0.5)
    assert torch.equal(load_flow(both, weights="model").layers[0].proj_out.weight, flow.layers[0].proj_out.weight)
    with pytest.raises(CheckpointError, match="the state dict has no weights 'absent'; it has 'ema', 'model'"):
        load_flow(both, weights="absent")
    state["blocks.0.proj_in.bias"][0] = float("nan")
    with pytest.raises(CheckpointError, match="the state dict cannot be sampled: 'blocks.0.proj_in.bias' holds NaN"):
        load_flow(state)
    with pytest.raises(CheckpointError, match="'blocks.0.proj_in.bias' of the state dict is no plain tensor"):
        load_flow(state | {"blocks.0.proj_in.bias": state["blocks.0.proj_in.bias"].to("meta")})
