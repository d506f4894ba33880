"""The feature networks' training: deterministic, on labels or rotations, and honest about what came out."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from harness.cli import app
from harness.datasets import load_dataset
from harness.errors import HarnessError, StoreError
from harness.files import locked
from harness.metrics.features import NetworkFeatures, feature_extractor, own_networks, shipped_network
from harness.metrics.networks import RECIPES, default_recipe
from harness.training.config import read_config
from harness.training.features import _unseen, fit, held_out_accuracy, train_features
from harness.training.likelihood import Splits

SHORT = replace(RECIPES["digits"], epochs=2)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "train"), load_dataset("digits", "test")


def test_the_same_seed_gives_the_same_weights(digits):
    first, again, other = (fit(SHORT, digits[0], seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_training_leaves_the_global_generator_alone(digits):
    before = torch.get_rng_state()
    fit(replace(SHORT, epochs=1), digits[0], 0)
    assert torch.equal(before, torch.get_rng_state())


def test_rotations_need_no_labels(digits):
    train, test = (replace(split, labels=None) for split in digits)
    recipe = replace(SHORT, task="rotations", epochs=4)
    assert held_out_accuracy(fit(recipe, train, 0), recipe, test) > 0.6  # chance is 0.25
    with pytest.raises(HarnessError, match="labelled"):
        fit(SHORT, train, 0)


def test_the_command_writes_network_card_and_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["train-features", "digits", "--epochs", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    extractor = NetworkFeatures(tmp_path / "features-digits.safetensors")
    card = (tmp_path / "features-digits.md").read_text()
    assert f"{float(extractor.metadata['held_out_accuracy']):.1%}" in card
    assert len((tmp_path / "features-digits.csv").read_text().splitlines()) == 1 + 3 * 5


def test_a_network_of_ones_own_is_found(tmp_path, monkeypatch, digits):
    from harness.datasets import Dataset, datasets

    class Mine(Dataset):
        def load(self, split):
            return digits[split == "test"]

    monkeypatch.setitem(datasets._objects, "mine", Mine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train_features("mine", own_networks(), epochs=1)
    assert shipped_network("mine").name.startswith("features-mine@")


def test_a_folder_of_ones_own_with_a_corrupt_image(tmp_path):
    """Images of several sizes, one of them unreadable: a size and --skip-corrupt make a network of them."""
    for row in range(40):
        (tmp_path / "data" / f"{row % 2}").mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (20 + row, 24), (row % 2 * 200, row, 255 - row))
        picture.save(tmp_path / "data" / f"{row % 2}" / f"{row:02}.png")
    (tmp_path / "data" / "1" / "bad.png").write_bytes(b"junk")
    arguments = ["train-features", "imagefolder", "--data-root", str(tmp_path / "data"), "--out", str(tmp_path)]
    refused = CliRunner().invoke(app, [*arguments, "--epochs", "1", "--size", "16"])
    assert "bad.png' cannot be decoded" in str(refused.exception)
    result = CliRunner().invoke(app, [*arguments, "--epochs", "1", "--size", "16", "--skip-corrupt"])
    assert result.exit_code == 0, result.output
    assert "left out 1 corrupt training images" in result.output
    assert "imagefolder --seed 0 --epochs 1 --size 16" in (tmp_path / "features-imagefolder.md").read_text()


def test_splits_of_other_channels_are_told_before_training(tmp_path):
    """Held-out images that are grey are taken by a flow of colours, and not the other way about."""
    for split, colour in (("train", False), ("test", True)):
        (tmp_path / split).mkdir()
        Image.new("RGB" if colour else "L", (8, 8), (1, 2, 3) if colour else 1).save(tmp_path / split / "0.png")
    _, config = read_config("digits")
    said = r"the test split of 'imagefolder' holds images of shape \(3, 8, 8\), not \(1, 8, 8\)"
    with pytest.raises(HarnessError, match=said):
        train_features("imagefolder", tmp_path, root=tmp_path)
    with pytest.raises(HarnessError, match=said):
        Splits.load(config, "imagefolder", None, tmp_path, False)
    (tmp_path / "train").rename(tmp_path / "x")
    (tmp_path / "test").rename(tmp_path / "train")
    (tmp_path / "x").rename(tmp_path / "test")
    assert Splits.load(config, "imagefolder", None, tmp_path, False).held_out.pixels.shape == (1, 3, 8, 8)


def test_the_card_owns_what_the_features_do_not_see():
    rows = {"level": [0.0, 1.0], "kid_std": [0.01, 0.01], "num_samples": [9, 9], "fid": [1.0, 2.0]}
    seen = pd.DataFrame({"change": "noise", "kid": [0.0, 0.5], **rows})
    unseen = pd.DataFrame({"change": "blur", "kid": [0.0, 0.02], **rows})
    assert "blur" in _unseen(pd.concat([seen, unseen]))
    assert "noise" not in _unseen(pd.concat([seen, unseen]))
    assert _unseen(seen) == ""


def test_images_that_are_not_square_need_a_size(digits):
    with pytest.raises(HarnessError, match=r"\(6, 8\); give a size"):
        fit(SHORT, replace(digits[0], pixels=digits[0].pixels[:, :, :6]), 0)


def test_the_default_recipe_fits_the_data(digits):
    train, _ = digits
    assert default_recipe("mine", train).task == "labels"
    assert default_recipe("mine", replace(train, labels=None)).task == "rotations"
    assert default_recipe("mine", replace(train, labels=torch.zeros_like(train.labels))).task == "rotations"


def pictures(folder, shade):
    for row in range(40):
        (folder / f"{row % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), shade + row + row % 2 * 100).save(folder / f"{row % 2}" / f"{row:02}.png")
    return str(folder)


def test_a_network_of_one_folder_does_not_serve_another(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one, other = pictures(tmp_path / "one", 0), pictures(tmp_path / "other", 7)
    train_features("imagefolder", own_networks(), root=one, epochs=1)
    assert feature_extractor("imagefolder", root=one).name.startswith("features-imagefolder@")
    with pytest.raises(HarnessError, match="was trained on other images of 'imagefolder' than those given"):
        feature_extractor("imagefolder", root=other)
    train_features("imagefolder", own_networks(), root=other, epochs=1)
    assert feature_extractor("imagefolder", root=other)


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    told = []
    with pytest.raises(StoreError, match="cannot write to"):
        train_features("digits", tmp_path / "file", epochs=1, report=told.append)
    with locked(tmp_path, "trains"), pytest.raises(StoreError, match="another process trains a network in"):
        train_features("digits", tmp_path, epochs=1, report=told.append)
    assert told == []


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (slice(30), slice(2), "30 images to learn from and 2 to test on are too few"),
        (slice(30), "unlabelled", "the test split has none"),
        (slice(30), "colour", "the test split of 'digits' holds images"),
    ],
)
def test_splits_of_no_use_are_told_before_training(tmp_path, monkeypatch, digits, train, test, said):
    held_out = digits[1]
    if test == "unlabelled":
        held_out = replace(held_out, labels=None)
    elif test == "colour":
        held_out = replace(held_out, pixels=torch.randint(255, (9, 3, 8, 8), dtype=torch.uint8))
    else:
        held_out = replace(held_out, pixels=held_out.pixels[test], labels=held_out.labels[test])
    learned = replace(digits[0], pixels=digits[0].pixels[train], labels=digits[0].labels[train])
    splits = {"train": learned, "test": held_out}
    monkeypatch.setattr("harness.training.features.load_dataset", lambda name, split, *more: splits[split])
    told = []
    with pytest.raises(HarnessError, match=said):
        train_features("digits", tmp_path, epochs=1, report=told.append)
    assert told == []


@pytest.mark.parametrize("options", [{"epochs": 0}, {"seed": -1}, {"seed": 2**63}])
def test_numbers_out_of_range_are_sentences(tmp_path, options):
    with pytest.raises(HarnessError, match="there is at least one epoch, and a seed is from 0"):
        train_features("digits", tmp_path, **options)


def test_a_network_that_diverges_is_not_written(digits):
    with pytest.raises(HarnessError, match="the loss of epoch 1 is nan, so no network is written"):
        fit(replace(SHORT, learning_rate=float("inf")), digits[0], 0)
