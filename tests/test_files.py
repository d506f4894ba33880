"""Files are whole or not there at all, and readable by whoever shares the folder."""

import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from harness.datasets import load_dataset
from harness.errors import StoreError
from harness.files import data_root, kind_of, replacing, write_text
from harness.flows.synthetic import synthetic_checkpoint
from harness.metrics.features import shipped_network
from harness.metrics.quality import reference_features
from harness.training.features import train_features


@pytest.fixture
def umask(monkeypatch, tmp_path):
    """The usual one, and a cache folder of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_what_is_shared_can_be_read_by_others(umask, tmp_path):
    """Whatever a library makes of a new file's mode: safetensors writes 0600."""
    write_text(tmp_path / "text", "x")
    with replacing(tmp_path / "tensors") as partial:
        save_file({"a": np.zeros(3)}, partial)
    synthetic_checkpoint("random:4-64-2-1@16")
    reference_features(load_dataset("digits", "test"), shipped_network("digits"))
    train_features("digits", tmp_path / "networks", epochs=1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 9 and {path.stat().st_mode & 0o777 for path in files} == {0o644}, files


def test_a_library_that_cannot_write_is_a_sentence_and_nothing_is_changed(tmp_path):
    write_text(tmp_path / "tensors", "as it was")
    with pytest.raises(StoreError, match="cannot write to '.*tensors'"), replacing(tmp_path / "tensors") as partial:
        save_file({"a": np.zeros(3)}, partial / "below a file")
    with pytest.raises(RuntimeError), replacing(tmp_path / "tensors") as partial:
        raise RuntimeError("half-way")
    assert [path.name for path in tmp_path.iterdir()] == ["tensors"]
    assert (tmp_path / "tensors").read_text() == "as it was"


def test_two_who_write_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "tensors"
    with replacing(path) as first, replacing(path) as second:
        save_file({"a": np.ones(3)}, second)
        save_file({"a": np.zeros(3)}, first)
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("a"), torch.zeros(3, dtype=torch.float64))
    assert list(tmp_path.iterdir()) == [path]


def test_the_data_root_given_comes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    assert data_root() is None
    monkeypatch.setenv("HARNESS_DATA", "~/data")
    assert data_root() == tmp_path.home() / "data"
    assert data_root(tmp_path) == tmp_path


def test_the_beginning_of_any_file_is_of_some_kind(tmp_path):
    path, whole = (
        tmp_path / "x",
        [b"\x80\x02\x8a\nl\xfc\x9c", b"PK\3\4", b"\x93NUMPY", b"<html>", b"\0" * 9 + b"{", b"\xff"],
    )
    for content in whole:
        for size in range(len(content) + 1):
            path.write_bytes(content[:size])
            assert kind_of(path)
