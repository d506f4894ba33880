"""Reading checkpoints: every layout that is right, and a sentence for every one that is not."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.errors import CheckpointError
from harness.flows import load_flow
from harness.flows.checkpoints import digest
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
        (lambda state: state.update({"var": 3}), "holds 'var': int, expected only tensors"),
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


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache folder of one's own, where what is unwrapped goes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def state_of(fill=None):
    """A state dict, all its numbers `fill` where that is given."""
    state = dict(TarFlow(TarFlowConfig(**SHAPES[0])).state_dict())
    return state if fill is None else {name: torch.full_like(tensor, fill) for name, tensor in state.items()}


def behind(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def inside(state):
    """As `torch.compile` of a part renames it."""
    return {name.replace("blocks.1.", "blocks.1._orig_mod."): tensor for name, tensor in state.items()}


ADAM = {"state": {0: {"exp_avg": torch.zeros(2), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
WRAPPED = {
    "module.": lambda s: behind("module.", s),
    "_orig_mod.": lambda s: behind("_orig_mod.", s),
    "nested": lambda s: behind("module._orig_mod.module.", s),
    "in the middle": lambda s: behind("module.", inside(s)),
    "AveragedModel": lambda s: behind("module.", s) | {"n_averaged": torch.tensor(7)},
    "n_averaged alone": lambda s: s | {"n_averaged": torch.tensor(7)},
    "below a key": lambda s: {"model": s},
    "below two": lambda s: {"checkpoint": {"state_dict": behind("module.", s)}, "config": {"lr": 0.1}},
    "counters": lambda s: s | {"epoch": 3, "step": torch.tensor(10), "best": None},
    "optimizer": lambda s: {"state_dict": s, "optimizer": ADAM, "epoch": 3, "lr": 0.1, "args": ["a"]},
    "optimizer beside": lambda s: s | {"optimizer": ADAM},
    "lightning": lambda s: {"state_dict": behind("model.", s) | {"loss.weight": torch.ones(2)}, "callbacks": {}},
    "a wrapper's key": lambda s: {"module": s, "global_steps": 3},
    "twice the same": lambda s: {"model": s, "state_dict": s},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_the_only_weights_in_a_file_are_used_and_that_is_said(wrap, tmp_path, cache, caplog):
    state = state_of()
    torch.save(wrap(dict(state)), tmp_path / "wrapped_model_x_0.07.pth")
    flow = load_flow(tmp_path / "wrapped_model_x_0.07.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in flow.state_dict().items())
    (said,) = caplog.messages
    assert "wrapped_model_x_0.07.pth' uses the only weights in it" in said and "\n" not in said
    assert flow.source.is_relative_to(cache) and flow.source.stem == "wrapped_model_x_0.07"
    load_flow(tmp_path / "wrapped_model_x_0.07.pth")
    assert len(caplog.messages) == 1  # once is enough


def test_wrapped_weights_of_safetensors_keep_their_metadata(tmp_path, cache):
    flow = TarFlow(TarFlowConfig(**SHAPES[0], head_dim=16))
    facts = {"head_dim": "16", "sigma": "0.1", "note": "a", "other": "b"}
    save_file(behind("ema.module.", flow.state_dict()), tmp_path / "x.safetensors", facts)
    loaded = load_flow(tmp_path / "x.safetensors")
    assert loaded.config == flow.config
    first = digest(loaded.source)
    loaded.source.unlink()
    assert digest(load_flow(tmp_path / "x.safetensors", weights="ema").source) == first  # whatever order they come in


EMA = {
    "beside": lambda raw, ema: {"state_dict": behind("module.", raw), "ema": behind("module.", ema), "epoch": 1},
    "named otherwise": lambda raw, ema: {"model": raw, "model_ema": ema},
    "below": lambda raw, ema: {"model": raw, "callbacks": {"EMA": {"shadow": ema}}},
    "beside tensors": lambda raw, ema: raw | {"ema": ema},
    "one flat dict": lambda raw, ema: behind("online_model.", raw) | behind("ema_model.", ema),
}


@pytest.mark.parametrize("wrap", EMA.values(), ids=EMA)
def test_among_several_weights_an_average_comes_first_and_any_can_be_chosen(wrap, tmp_path, cache, caplog):
    raw, ema = state_of(0.25), state_of(0.5)
    torch.save(wrap(dict(raw), dict(ema)), tmp_path / "x.pth")
    assert load_flow(tmp_path / "x.pth").var.eq(0.5).all()
    assert "an average (EMA), preferred among" in caplog.text and "--weights" in caplog.text
    with pytest.raises(CheckpointError, match="has no weights 'nothing'; it has '.*', '.*'") as caught:
        load_flow(tmp_path / "x.pth", weights="nothing")
    keys = str(caught.value).partition("it has ")[2].replace("'", "").split(", ")
    values = {float(load_flow(tmp_path / "x.pth", weights=key).var[0, 0]) for key in keys}
    assert values == {0.25, 0.5}
    digests = {digest(load_flow(tmp_path / "x.pth", weights=key).source) for key in keys}
    assert len(digests) == 2 and digest(load_flow(tmp_path / "x.pth").source) in digests


def test_weights_that_none_is_preferred_of_are_to_be_chosen(tmp_path, cache):
    several = {
        "generator": {"generator": state_of(0.25), "critic": state_of(0.5)},
        "ema_0.999": {"ema_0.999": state_of(0.25), "ema_0.9999": state_of(0.5)},
        ".": state_of(0.25) | behind("module.", state_of(0.5)),
    }
    for key, content in several.items():
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="several sets of weights, .*--weights KEY"):
            load_flow(tmp_path / "x.pth")
        assert load_flow(tmp_path / "x.pth", weights=key).var.eq(0.25).all()
    torch.save(state_of(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="has no weights 'ema'; it has '.'"):
        load_flow(tmp_path / "plain.pth", weights="ema")


def test_a_name_in_a_file_is_no_escape_code(tmp_path, cache, caplog):
    torch.save({"\x1b[31mred": state_of(), "\x1b]0;title": 3}, tmp_path / "x.pth")
    load_flow(tmp_path / "x.pth")
    assert "?[31mred" in caplog.text and "\x1b" not in caplog.messages[0]


def test_a_dict_that_holds_itself_ends(tmp_path, cache):
    content = {"model": state_of(0.25)}
    content["again"] = content
    torch.save(content, tmp_path / "x.pth")
    assert load_flow(tmp_path / "x.pth").var.eq(0.25).all()


def test_what_is_unwrapped_can_be_read_by_others(tmp_path, cache):
    torch.save({"model": state_of()}, tmp_path / "x.pth")
    before = os.umask(0o022)
    try:
        source = load_flow(tmp_path / "x.pth").source
    finally:
        os.umask(before)
    assert source.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_weight_that_is_not_finite_is_refused_by_name(value, suffix, tmp_path):
    state = state_of()
    state["blocks.1.proj_out.bias"][3] = value
    (torch.save if suffix == ".pth" else save_file)(state, tmp_path / f"x{suffix}")
    with pytest.raises(CheckpointError, match="'blocks.1.proj_out.bias' holds NaN or infinite weights"):
        load_flow(tmp_path / f"x{suffix}")


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path):
    state = state_of()
    state["blocks.1.proj_out.bias"][3] = 1e6
    torch.save(state, tmp_path / "x.pth")
    load_flow(tmp_path / "x.pth", dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="proj_out.bias' holds weights too large for torch.float16"):
        load_flow(tmp_path / "x.pth", dtype=torch.float16)


def torch_bytes(content, **how):
    torch.save(content, buffer := io.BytesIO(), **how)
    return buffer.getvalue()


def npz_bytes():
    np.savez(buffer := io.BytesIO(), var=np.zeros(3))
    return buffer.getvalue()


def tar_bytes():
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
FOREIGN = {
    "an HTML page": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "it is a web page"),
    "an LFS pointer": (LFS, "it is a Git LFS pointer.*git lfs pull"),
    "text": (b"Not found\n", "it is text"),
    "nothing": (b"", "it is an empty file"),
    "a numpy scalar": (torch_bytes({"var": torch.ones(2), "loss": np.float64(3.0)}), "holds a Python object, numpy"),
    "one, old": (torch_bytes({"x": np.float64(3)}, _use_new_zipfile_serialization=False), "a Python object, numpy"),
    "a module": (torch_bytes(torch.nn.Linear(2, 2)), "a Python object, torch.nn.modules.linear.Linear"),
    "an npz": (npz_bytes(), "it is a NumPy archive"),
    "a zip": (b"PK\3\4 cut", "it is a zip archive that is damaged"),
    "a tar": (tar_bytes(), "it is a tar archive"),
    "a gzip": (b"\x1f\x8b\x08" + bytes(30), "it is a gzip file"),
    "a pickle": (pickle.dumps([1, 2]), "it is a pickle"),
    "a cut pickle": (pickle.dumps({"a": list(range(99))})[:50], "it is a pickle"),
    "data": (bytes(range(128, 256)) * 4, "it is data of no known kind"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("content", "words"), FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_another_kind_is_called_what_it_is(content, words, suffix, tmp_path, capfd):
    (tmp_path / f"x{suffix}").write_bytes(content)
    if suffix == ".safetensors" and "object" in words:
        words = "it is a file of torch.save, not a safetensors file"
    with pytest.raises(CheckpointError, match=words) as caught:
        load_flow(tmp_path / f"x{suffix}")
    said = str(caught.value)
    assert "\x1b" not in said and "\n" not in said and "weights_only" not in said and "safe_globals" not in said
    assert "xpected" in said or "not a" in said and capfd.readouterr().err == ""


def test_a_checkpoint_of_one_kind_with_the_name_of_the_other(tmp_path):
    (tmp_path / "x.pth").write_bytes(torch_bytes(state_of()))
    save_file(state_of(), tmp_path / "y.safetensors")
    for name, other, words in (("x.pth", "x.safetensors", "a file of torch.save, not a safetensors file"),
                               ("y.safetensors", "y.pth", "a safetensors file, not a file of torch.save")):  # fmt: skip
        with contextlib.suppress(FileExistsError):
            os.link(tmp_path / name, tmp_path / other)
        with pytest.raises(CheckpointError, match=words):
            load_flow(tmp_path / other)


def test_an_unreadable_file_has_the_systems_own_reason(tmp_path, monkeypatch):
    save_file(state_of(), tmp_path / "x.safetensors")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(CheckpointError, match="x.safetensors' cannot be read as safetensors: Permission denied"):
        load_flow(tmp_path / "x.safetensors")


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
