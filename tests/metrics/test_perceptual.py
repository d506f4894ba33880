"""CLIP-IQA and BRISQUE: a value where package and weights are there, else a reason."""

import sys
import types

import pytest
import torch

from harness.metrics.perceptual import Perceptual

IMAGES = torch.rand(70, 1, 32, 32) * 2 - 1


def perceptual_scores(images, allow_download=False):
    return {name: total.score for name, total in Perceptual(allow_download)(images).items()}


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "piq", None)
    for score in perceptual_scores(IMAGES).values():
        assert score.value is None
        assert "install the extra 'iqa'" in score.reason


def test_without_the_weights():
    pytest.importorskip("piq")
    scores = perceptual_scores(IMAGES)
    assert [score.value for score in scores.values()] == [None, None]
    assert "clip/RN50.pt' are not there" in scores["clip_iqa"].reason
    assert "brisque_svm_weights.pt' are not there" in scores["brisque"].reason


def test_brisque_with_weights_at_hand(tmp_path):
    """piq's own code, with support vectors made here in place of those it would download."""
    pytest.importorskip("piq")
    weights = tmp_path / "torch" / "hub" / "checkpoints" / "brisque_svm_weights.pt"
    weights.parent.mkdir(parents=True)
    torch.save((torch.ones(4, 1), torch.zeros(4, 36)), weights)
    scores = perceptual_scores(IMAGES)
    assert scores["clip_iqa"].value is None
    assert scores["brisque"].reason is None
    first, second = (perceptual_scores(IMAGES[part])["brisque"].value for part in (slice(0, 35), slice(35, 70)))
    assert scores["brisque"].value == pytest.approx((first + second) / 2, rel=1e-4)
    flat = perceptual_scores(torch.zeros(2, 3, 32, 32))["brisque"]
    assert flat.value is None
    assert flat.reason


def test_a_download_that_fails_is_a_reason(monkeypatch):
    def no_network(*args, **options):
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "piq", types.SimpleNamespace(CLIPIQA=no_network, brisque=no_network))
    scores = perceptual_scores(IMAGES, allow_download=True)
    assert [score.reason for score in scores.values()] == ["OSError: no network"] * 2


def test_means_are_over_all_images(tmp_path, monkeypatch):
    for path in (".cache/clip/RN50.pt", ".cache/clip/clipiqa_tokens.pt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    clip = lambda data_range: lambda x: x.mean(dim=(1, 2, 3))  # noqa: E731
    monkeypatch.setitem(sys.modules, "piq", types.SimpleNamespace(CLIPIQA=clip, brisque=None))
    expected = ((IMAGES + 1) * 127.5).round().div(255).mean().item()
    assert perceptual_scores(IMAGES)["clip_iqa"].value == pytest.approx(expected, rel=1e-5)
