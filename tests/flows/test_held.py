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
    for held in (state, flow, Wrapper(flow), Wrapper(Wrapper(flow)), compiled, parameters):
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
        ({"model": {"a": 1}}, "holds 'model': dict, expected tensors by name"),
        ({"a": torch.zeros(2, device="meta")}, "'a' of the state dict is no plain tensor"),
    ],
)
def test_what_is_no_flow_is_told(held, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        load_flow(held)


def test_a_state_dict_that_lacks_a_tensor(flow):
    state = flow.state_dict()
    state.pop("blocks.1.proj_out.weight")
    with pytest.raises(CheckpointError, match="these weights are no flow"):
        load_flow(state)
