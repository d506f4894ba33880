"""Reading checkpoints: every layout that is right, and a sentence for every one that is not."""

import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import CheckpointError
from harness.flows import load_flow
from harness.flows.tarflow import TarFlow, TarFlowConfig

SHAPES = [
    dict(image_channels=3, image_size=8, patch=2, channels=64, blocks=3, layers_per_block=2),
    dict(image_channels=1, image_size=8, patch=1, channels=64, blocks=2, layers_per_block=1, num_classes=10),
    dict(image_channels=3, image_size=16, patch=4, channels=128, blocks=1, layers_per_block=1, volume_preserving=True),
]


@pytest.fixture(params=SHAPES, ids=["uncond", "classes", "volume-preserving"])
def flow(request):
    return TarFlow(TarFlowConfig(**request.param))


def published_state(flow):
    """The state dict as published: with the attention mask that can be derived."""
    mask = torch.tril(torch.ones(flow.num_tokens, flow.num_tokens))
    return flow.state_dict() | {f"blocks.{k}.attn_mask": mask.clone() for k in range(flow.num_layers)}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_architecture_is_inferred_from_shapes(flow, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    (torch.save if suffix == ".pth" else save_file)(published_state(flow), path)
    loaded = load_flow(path)
    assert loaded.config == flow.config
    images = torch.randn(2, *flow.image_shape)
    assert torch.equal(loaded.encode(images)[0], flow.encode(images)[0])
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_pth_of_the_old_format_is_read_too(tmp_path):
    flow = TarFlow(TarFlowConfig(**SHAPES[0]))
    torch.save(flow.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_flow(tmp_path / "old.pth").config == flow.config


def test_a_smaller_head_dimension_comes_from_the_metadata(tmp_path):
    flow = TarFlow(TarFlowConfig(**SHAPES[0], head_dim=16))
    save_file(flow.state_dict(), tmp_path / "heads.safetensors", metadata={"head_dim": "16"})
    assert load_flow(tmp_path / "heads.safetensors").config.head_dim == 16


def test_loading_leaves_torchs_compiler_alone():
    code = "import sys; from harness.flows import load_flow; load_flow('digits'); print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_flow_uses_the_tensors_it_is_given_and_copies_none(flow):
    state = flow.state_dict()
    built = TarFlow.from_state(state, {}).to(device="cpu", dtype=torch.float32)
    assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in built.state_dict().items())


class Hostile:
    """Unpickling this would call a function."""

    def __reduce__(self):
        return (print, ("executed",))


def without(name):
    return lambda state: state.pop(name)


def reshaped(name, *shape):
    return lambda state: state.update({name: torch.zeros(*shape)})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("var"), "is no flow of a known family"),
        (without("blocks.0.pos_embed"), "1 tensors are missing, the first is 'blocks.0.pos_embed'"),
        (without("blocks.1.proj_in.weight"), "the first is 'blocks.1.proj_in.weight'"),
        (reshaped("var", 15, 12), "15 tokens do not make a square image"),
        (reshaped("var", 16, 7), "7 numbers a token are neither"),
        (reshaped("var", 16), "'var' has shape 16, expected 2 dimensions"),
        (reshaped("blocks.0.proj_out.weight", 13, 64), "has 13 rows, expected 12 or 24"),
        (reshaped("blocks.2.pos_embed", 3, 64), "'blocks.2.pos_embed' has shape 3 x 64, expected 16 x 64"),
        (reshaped("blocks.0.extra", 1), "belong to no TarFlow, the first is 'blocks.0.extra'"),
        (reshaped("blocks.7.proj_in.weight", 64, 12), "not numbered 0, 1, 2"),
        (lambda state: state.update({"epoch": 3}), "holds 'epoch': int, expected only tensors"),
    ],
)
def test_a_wrong_state_dict_is_one_sentence(damage, words, tmp_path):
    state = TarFlow(TarFlowConfig(**SHAPES[0])).state_dict()
    damage(state)
    torch.save(dict(state), tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_flow(tmp_path / "bad.pth")
    assert "bad.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, capsys):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"var": Hostile()}))
    with pytest.raises(CheckpointError, match="cannot be read as a plain state dict"):
        load_flow(tmp_path / "evil.pth")
    torch.save({"var": Hostile()}, tmp_path / "evil2.pth")
    with pytest.raises(CheckpointError, match="cannot be read as a plain state dict"):
        load_flow(tmp_path / "evil2.pth")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_cut_or_empty_file_is_one_sentence(suffix, tmp_path):
    flow = TarFlow(TarFlowConfig(**SHAPES[0]))
    path = tmp_path / f"cut{suffix}"
    (torch.save if suffix == ".pth" else save_file)(flow.state_dict(), path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_flow(path)


def test_what_can_be_no_file_is_one_sentence():
    with pytest.raises(CheckpointError, match="no checkpoint can be at"):
        load_flow("a" * 300)


def test_a_missing_checkpoint_names_itself(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_flow(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="unknown flow 'digit'"):
        load_flow("digit")
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_flow(tmp_path)
