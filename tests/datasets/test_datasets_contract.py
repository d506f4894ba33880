"""What holds for every registered dataset; a new one is covered without editing this file."""

import pytest
import torch

from harness.datasets import Dataset, dataset_fingerprint, datasets, load_dataset, to_pixels, to_unit
from harness.errors import HarnessError

NAMES = datasets.names()
EMBEDDED = [name for name in NAMES if datasets.get(name).embedded]
COINCIDENCES = 0.05
"""Share of held-out images that may look like a training image: 8x8 images of two levels do now and then."""
ON_DISK = [name for name in NAMES if not datasets.get(name).embedded]


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_datasets_load(name):
    train, test = load_dataset(name, "train"), load_dataset(name, "test")
    for images in (train, test):
        assert images.pixels.dtype == torch.uint8
        assert images.pixels.ndim == 4
        assert images.labels is None or images.labels.shape == (len(images),)
    assert train.pixels.shape[1:] == test.pixels.shape[1:]
    assert train.digest == load_dataset(name, "train").digest != test.digest
    assert dataset_fingerprint(name, "train") == train.digest  # no files to tell instead
    rows = {image.numpy().tobytes() for image in train.pixels}
    recurring = sum(image.numpy().tobytes() in rows for image in test.pixels)
    assert recurring <= COINCIDENCES * len(test)  # nothing held out was trained on


@pytest.mark.parametrize("name", ON_DISK)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("ask", [load_dataset, dataset_fingerprint])
def test_missing_files_are_one_sentence(name, split, ask, tmp_path, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    with pytest.raises(HarnessError, match=r"give the data root, or set \$HARNESS_DATA"):
        ask(name, split)
    with pytest.raises(HarnessError, match="absent' is not a folder"):
        ask(name, split, root=tmp_path / "absent")
    with pytest.raises(HarnessError) as caught:
        ask(name, split, root=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_root_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    with pytest.raises(HarnessError, match=str(tmp_path)):
        load_dataset("cifar10", "train")


def test_unknown_names_and_splits():
    with pytest.raises(HarnessError, match="did you mean 'cifar10'"):
        load_dataset("cifar1O", "train")
    with pytest.raises(HarnessError, match="unknown split 'val'"):
        load_dataset("digits", "val")


def test_a_plugin_that_names_no_files_is_told_by_its_images(monkeypatch):
    class Plugin(Dataset):
        def load(self, split):
            return load_dataset("digits", split)

    monkeypatch.setitem(datasets._objects, "plugin", Plugin)
    assert dataset_fingerprint("plugin", "test") == load_dataset("digits", "test").digest


def test_pixels_survive_the_unit_scale():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_unit(pixels)), pixels)
