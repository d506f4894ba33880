"""A short, always equal share of `make fuzz`, and what fuzzing found or was built to refuse, case by case."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.datasets import load_dataset
from harness.decoders.schedule import LayerSchedule
from harness.errors import CheckpointError, DatasetError, HarnessError
from harness.files import file_name
from harness.flows import load_flow
from harness.measure.matrix import build_matrix, load_matrix
from harness.registry import Registry
from harness.runs.baselines import save_baseline
from harness.runs.store import RunStore
from harness.training.config import read_config

RUN = Path(__file__).parent / "fuzz_run.py"


def test_every_target_refuses_a_few_mutants_of_one_seed():
    command = [sys.executable, str(RUN), "--together", "--seed", "0", "--inputs", "12", "--seconds", "30"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("12 inputs") == 16, done.stdout


def test_the_guard_sees_what_it_is_there_for(tmp_path):
    code = f"""
import os, sys; sys.path.insert(0, {str(RUN.parent)!r})
from pathlib import Path
from fuzz_engine import Guard, Target
guard, folder = Guard(Path({str(tmp_path)!r})), Path({str(tmp_path)!r})
def fed(does): return guard.run(Target("t", [b""], lambda data, folder: does(), None), b"", folder)
assert fed(lambda: (folder / "inside").write_text("x")) is None
for does in (lambda: open("/tmp/outside", "w"), lambda: os.system("true"), lambda: os.mkdir("/tmp/outside"), lambda: bytearray(1 << 40),
             lambda: 1 / 0, lambda: (folder / "inside").rename(folder.parent / "escaped")):
    assert fed(does), does
"""  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert not Path("/tmp/outside").exists() and not (tmp_path.parent / "escaped").exists()


@given(st.text(max_size=120))
@settings(deadline=None)
def test_a_name_stays_in_its_folder(text):
    folder = Path("/somewhere/runs")
    try:
        name = file_name("a matrix", text)
    except HarnessError:
        return
    assert (folder / name).resolve().parent == folder and (folder / f"{name}.md").name == f"{name}.md"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        "name",
        "device",
        "dtype",
        "datasets",
        "decoders",
        "grid",
        "include",
        "timing",
        "quality",
        "memory",
        "profiles",
        "x",
    ]
)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
@settings(deadline=None, max_examples=300)
def test_any_tables_are_a_matrix_or_a_sentence(tables):
    sound = {"name": "m", "datasets": [{"name": "digits"}], "decoders": [{"name": "ujd"}]}
    try:
        build_matrix(sound | tables, "'m.toml'")
    except HarnessError as error:
        assert str(error) and "\n" not in str(error)


ESCAPES = ["../../x", "..", "a/b", "/etc/x", "", ".hidden", "a\0b", "x" * 300, "a\nb"]


@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_leads_out_of_a_folder(name, tmp_path):
    with pytest.raises(HarnessError, match="cannot name"):
        build_matrix({"name": name, "datasets": [{"name": "d"}], "decoders": [{"name": "ujd"}]}, "'m'")
    RunStore.create(tmp_path / "run", {}).close()
    with pytest.raises(HarnessError, match="cannot name a baseline"):
        save_baseline(tmp_path / "run", name, root=tmp_path / "baselines")
    with pytest.raises(HarnessError, match="cannot name a decoder"):
        Registry("decoder", "harness.decoders", "none").register(name)(object)


def test_a_file_called_after_its_parent_folder_names_nothing(tmp_path):
    text = '[[datasets]]\nname = "digits"\n[[decoders]]\nname = "ujd"\n'
    (tmp_path / "...toml").write_text(text)
    with pytest.raises(HarnessError, match="cannot name a matrix"):
        load_matrix(str(tmp_path / "...toml"))
    (tmp_path / "...toml").write_text(
        (Path(read_config.__code__.co_filename).parents[1] / "flows/assets/digits.toml").read_text()
    )
    with pytest.raises(HarnessError, match="cannot name a training"):
        read_config(str(tmp_path / "...toml"))


@pytest.mark.parametrize("bracket", ["[", "{a="])
def test_deeply_nested_toml_is_a_sentence(bracket, tmp_path):
    (tmp_path / "deep.toml").write_text(f"a = {bracket * 20_000}")
    for read in (load_matrix, read_config, lambda path: LayerSchedule.load(Path(path))):
        with pytest.raises(HarnessError, match="TOML"):
            read(str(tmp_path / "deep.toml"))


def test_a_schedule_imports_nothing(tmp_path):
    (tmp_path / "s.toml").write_text(
        'checkpoint = ""\ndevice = "cpu"\nbatch = 1\nbudget = "sejd"\nallowed = 1\ndeviation = 1\npredicted_s = 1\n'
        '[[layers]]\ndecoder = "antigravity:fly"\n'
    )
    with pytest.raises(HarnessError, match="unknown decoder"):
        LayerSchedule.load(tmp_path / "s.toml")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("path", [":", ":Class", "../x:Class", "..x:Class", "os:", "os:a.b", "a/b:C", "os:../x"])
def test_what_is_no_module_is_not_imported(path):
    with pytest.raises(HarnessError, match="package.module:Class"):
        Registry("decoder", "harness.decoders", "none").get(path)


def repacked(content: bytes, compression: int, more: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry) + bytes(more if entry.filename.endswith("data.pkl") else 0))
    return buffer.getvalue()


def saved(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    (tmp_path / "bomb.pth").write_bytes(repacked(saved({"var": torch.zeros(4)}), zipfile.ZIP_DEFLATED, 64 << 20))
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="may unpack to any size"):
        load_flow(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.zeros(1).expand(1 << 40, 4), id="one number, seen often"),
        pytest.param(torch.empty(1 << 40, device="meta"), id="no numbers"),
        pytest.param(torch.eye(3).to_sparse(), id="sparse"),
    ],
)
def test_tensors_that_are_not_in_the_file_are_refused(tensor, tmp_path):
    (tmp_path / "x.pth").write_bytes(saved({"var": tensor}))
    with pytest.raises(CheckpointError, match="larger than the file|no plain tensor|cannot be read"):
        load_flow(tmp_path / "x.pth")


@pytest.mark.parametrize("length", [0, 1, (1 << 63) - 1, (1 << 64) - 1, 90 << 20])
def test_a_header_of_any_length_is_refused(length, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + b"{" * 100)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_flow(tmp_path / "x.safetensors")


def images(folder: Path, **save) -> None:
    (folder / "a").mkdir()
    Image.new("1", (9000, 9000)).save(folder / "a" / "1.png", **save)


def test_a_picture_of_too_many_pixels_is_refused(tmp_path):
    images(tmp_path)
    assert (tmp_path / "a" / "1.png").stat().st_size < 1 << 20
    with pytest.raises(DatasetError, match="it claims 9,000 x 9,000 pixels"):
        load_dataset("imagefolder", "train", tmp_path, size=8)


def test_what_would_run_another_program_is_no_picture(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(DatasetError, match="cannot be decoded as an image"):
        load_dataset("imagefolder", "train", tmp_path, size=8)
