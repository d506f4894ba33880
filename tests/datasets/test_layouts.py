"""Folders of images as people have them: what is plain is read, what would have to be guessed is a sentence."""

import os

import pytest
from PIL import Image

from harness.datasets import dataset_fingerprint, load_dataset
from harness.errors import DatasetError


def lay(root, *paths):
    for level, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), level).save(root / path, "PNG")


def levels(root, split="train"):
    """Which of the images laid are read, each by its number, and their labels."""
    images = load_dataset("imagefolder", split, root=root)
    return images.pixels[:, 0, 0, 0].tolist(), None if images.labels is None else images.labels.tolist()


def test_what_systems_leave_behind_is_no_image(tmp_path):
    lay(tmp_path, "a/0.png", "b/1.png", "a/._0.png", ".ipynb_checkpoints/0.png", ".Trash-0/files/1.png", "._x.png",
        "__MACOSX/a/0.png", "a/.ipynb_checkpoints/0-copy.png", "b/@eaDir/1.png/thumb.jpg")  # fmt: skip
    assert levels(tmp_path) == ([0, 1], [0, 1])
    before = dataset_fingerprint("imagefolder", "train", root=tmp_path)
    lay(tmp_path, ".more/2.png")
    assert dataset_fingerprint("imagefolder", "train", root=tmp_path) == before


def test_a_hidden_folder_above_the_root_is_no_matter(tmp_path):
    lay(tmp_path, ".cache/x/a/0.png")
    assert levels(tmp_path / ".cache" / "x") == ([0], [0])


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("test", ["Test", "testing", "VAL", "Valid", "validation"])
def test_splits_by_any_of_their_names(tmp_path, train, test):
    lay(tmp_path, f"{train}/a/0.png", f"{train}/b/1.png", f"{test}/b/2.png")
    assert (levels(tmp_path), levels(tmp_path, "test")) == (([0, 1], [0, 1]), ([2], [1]))


def test_val_beside_test_is_not_needed(tmp_path):
    lay(tmp_path, "train/a/0.png", "test/a/1.png", "val/a/2.png")
    assert levels(tmp_path, "test") == ([1], [0])


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    lay(tmp_path, *(f"{label}/{label}.png" for label in range(12)))
    assert levels(tmp_path) == (list(range(12)), list(range(12)))


AMBIGUOUS = {
    "loose beside classes": (["a/0.png", "b/1.png", "2.png"], "holds 1 images and 2 folders of images ('a', 'b')"),
    "loose in a split": (["train/a/0.png", "train/1.png"], "train' holds 1 images and 1 folders of images ('a')"),
    "loose beside splits": (["train/a/0.png", "test/a/1.png", "2.png"], "holds 1 images and 2 folders"),
    "classes beside splits": (["train/a/0.png", "dev/a/1.png"], "0 images and 2 folders of images ('dev', 'train')"),
    "nested classes": (["x/cat/0.png", "x/dog/1.png"], "x' holds 0 images and 2 folders of images ('cat', 'dog')"),
    "nested in a split": (["train/x/cat/0.png"], "train/x' holds 0 images and 1 folders of images ('cat')"),
    "nested beside images": (["train/x/0.png", "train/x/old/1.png"], "train/x' holds 1 images and 1 folders"),
    "a folder above": (["data/train/a/0.png", "data/test/a/1.png"], "data' holds 0 images and 2 folders"),
    "nearly splits": (["train_set/0.png", "test_set/1.png"], "2 folders of images ('test_set', 'train_set')"),
    "nearly splits, by year": (["train2017/0.png", "val2017/1.png"], "('train2017', 'val2017')"),
    "two of a split": (["train/a/0.png", "training/a/1.png"], "both claim to be the train split"),
    "two of a case": (["Train/a/0.png", "train/a/1.png"], "both claim to be the train split"),
    "classes in one split": (["train/a/0.png", "test/1.png"], "whether there are any"),
    "classes of another case": (["train/Cat/0.png", "test/cat/1.png"], "differ in what classes are called"),
}  # fmt: skip


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_would_have_to_be_guessed_is_refused(tmp_path, case):
    paths, said = AMBIGUOUS[case]
    lay(tmp_path, *paths)
    for ask in (load_dataset, dataset_fingerprint):
        with pytest.raises(DatasetError) as caught:
            ask("imagefolder", "train", root=tmp_path)
        assert said in str(caught.value)
        if "holds" in said:
            assert "expected ROOT/{train,test}/CLASS/*" in str(caught.value)


def test_links_are_followed(tmp_path):
    lay(tmp_path, "far/cats/0.png", "far/dogs/1.png", "far/more/a/2.png")
    root = tmp_path / "root"
    (root / "train").mkdir(parents=True)
    (root / "train" / "a").symlink_to(tmp_path / "far" / "cats")
    (root / "train" / "b").symlink_to(tmp_path / "far" / "dogs")
    (root / "test").symlink_to(tmp_path / "far" / "more")
    assert (levels(root), levels(root, "test")) == (([0, 1], [0, 1]), ([2], [0]))
    (root / "train" / "c").mkdir()
    (root / "train" / "c" / "deeper").symlink_to(tmp_path / "far" / "cats")
    with pytest.raises(DatasetError, match="train/c' holds 0 images and 1 folders"):
        levels(root)


def test_links_in_a_circle_end(tmp_path):
    lay(tmp_path, "a/0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "round").symlink_to(tmp_path / "b")
    assert levels(tmp_path) == ([0], [0])


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path):
    lay(tmp_path, "a/0.png")
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="1.png' cannot be decoded"):
        levels(tmp_path)
    assert load_dataset("imagefolder", "train", root=tmp_path, skip_corrupt=True).skipped == 1


def test_a_name_that_is_no_text(tmp_path):
    lay(tmp_path, os.fsdecode(b"\xff/0.png"))
    assert levels(tmp_path) == ([0], [0]) and len(dataset_fingerprint("imagefolder", "train", root=tmp_path)) == 64
