"""Images as files: Parquet, folders, AFHQ; decoding, resizing, and corrupt files."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from harness.datasets import dataset_fingerprint, load_dataset
from harness.errors import DatasetError


def picture(seed, size=(12, 12)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def encoded(seed, size=(12, 12)):
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, images, labels=None, column="img"):
    columns = {column: [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]}
    if labels is not None:
        columns["label"] = labels
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_folder(folder, seeds, size=(12, 12)):
    folder.mkdir(parents=True)
    for seed in seeds:
        picture(seed, size).save(folder / f"{seed:03}.png")


@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_holds_images_and_labels(tmp_path, column):
    write_parquet(tmp_path / "train.parquet", [encoded(i) for i in range(3)], [2, 0, 1], column)
    images = load_dataset("parquet", "train", root=tmp_path)
    assert images.labels.tolist() == [2, 0, 1]
    for i in range(3):
        assert torch.equal(images.pixels[i], torch.from_numpy(np.asarray(picture(i)).copy()).permute(2, 0, 1))


def test_parquet_shards_are_read_in_order(tmp_path):
    for shard in range(2):
        path = tmp_path / "data" / f"train-{shard:05}-of-00002.parquet"
        write_parquet(path, [encoded(10 * shard + i) for i in range(2)], [shard, shard])
    images = load_dataset("parquet", "train", root=tmp_path)
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(images.pixels[3], torch.from_numpy(np.asarray(picture(11)).copy()).permute(2, 0, 1))


def test_parquet_without_labels(tmp_path):
    write_parquet(tmp_path / "test.parquet", [encoded(0)])
    assert load_dataset("parquet", "test", root=tmp_path).labels is None


def test_truncated_parquet_is_refused(tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet(path, [encoded(i) for i in range(3)], [0, 1, 2])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="train.parquet' cannot be read as Parquet"):
        load_dataset("parquet", "train", root=tmp_path)


def test_other_columns_are_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(DatasetError, match="has the columns text; expected images as 'img'"):
        load_dataset("parquet", "train", root=tmp_path)


def test_a_column_whose_name_is_no_text_is_a_sentence(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"img": [{"bytes": encoded(0)}], "surely": [1]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"surely", b"\xff\xferely"))
    with pytest.raises(DatasetError, match="train.parquet' cannot be read as Parquet"):
        load_dataset("parquet", "train", root=tmp_path)


def test_text_in_place_of_bytes_is_no_path_to_open(tmp_path):
    picture(0).save(tmp_path / "secret.png")
    pq.write_table(pa.table({"img": [{"bytes": str(tmp_path / "secret.png")}]}), tmp_path / "train.parquet")
    with pytest.raises(DatasetError, match="a struct with a field 'bytes'"):
        load_dataset("parquet", "train", root=tmp_path)


def test_two_columns_of_one_name_are_a_sentence(tmp_path):
    table = pa.table([[{"bytes": encoded(0)}], [1], [2]], names=["img", "label", "label"])
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        load_dataset("parquet", "train", root=tmp_path)


@pytest.mark.parametrize("name", ["Train.parquet", "training.PARQUET", "data/TRAIN-00000-of-00001.parquet"])
@pytest.mark.parametrize("held_out", ["val.parquet", "validation-00000-of-00001.parquet", "Test.parquet"])
def test_parquet_splits_by_any_of_their_names(tmp_path, name, held_out):
    for seed, path in enumerate((name, held_out)):
        write_parquet(tmp_path / path, [encoded(seed)])
    for seed, split in enumerate(("train", "test")):
        (pixels,) = load_dataset("parquet", split, root=tmp_path).pixels
        assert torch.equal(pixels, torch.from_numpy(np.asarray(picture(seed)).copy()).permute(2, 0, 1))


def test_two_tables_of_one_split_are_refused(tmp_path):
    for name in ("train.parquet", "data/train-00000-of-00001.parquet"):
        write_parquet(tmp_path / name, [encoded(0)])
    with pytest.raises(DatasetError, match="both claim to be the train split"):
        load_dataset("parquet", "train", root=tmp_path)


def test_labels_that_only_some_shards_have_are_refused(tmp_path):
    write_parquet(tmp_path / "train-0-of-2.parquet", [encoded(0)], [1])
    write_parquet(tmp_path / "train-1-of-2.parquet", [encoded(1)])
    with pytest.raises(DatasetError, match="train-1-of-2.parquet', row 0: the label is missing"):
        load_dataset("parquet", "train", root=tmp_path)


def test_rows_without_any_label_are_unlabelled_images(tmp_path):
    columns = {"img": [{"bytes": encoded(0)}], "label": pa.array([None], pa.int64())}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    assert load_dataset("parquet", "train", root=tmp_path).labels is None


@pytest.mark.parametrize("label", [-1, None, 1 << 40, 0.5, "cat"])
def test_impossible_labels_are_refused(tmp_path, label):
    write_parquet(tmp_path / "train.parquet", [encoded(0), encoded(1)], [None if label == "cat" else 0, label])
    with pytest.raises(DatasetError, match=r"row [01]: the label is"):
        load_dataset("parquet", "train", root=tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: None])
def test_corrupt_images_are_named_or_counted(tmp_path, damage):
    good = [encoded(i) for i in range(3)]
    write_parquet(tmp_path / "train.parquet", [good[0], damage(good[1]), good[2]], [5, 6, 7])
    with pytest.raises(DatasetError, match="train.parquet', row 1 cannot be decoded as an image.*--skip-corrupt"):
        load_dataset("parquet", "train", root=tmp_path)
    images = load_dataset("parquet", "train", root=tmp_path, skip_corrupt=True)
    assert (images.labels.tolist(), images.skipped) == ([5, 7], 1)
    assert torch.equal(images.pixels[1], torch.from_numpy(np.asarray(picture(2)).copy()).permute(2, 0, 1))


def test_nothing_but_corrupt_images(tmp_path):
    write_parquet(tmp_path / "train.parquet", [b"junk"], [0])
    with pytest.raises(DatasetError, match="holds no images"):
        load_dataset("parquet", "train", root=tmp_path, skip_corrupt=True)


def test_images_are_cropped_at_the_centre_and_resampled(tmp_path):
    """A wide image loses its sides: green in the middle, red at both ends."""
    image = Image.new("RGB", (48, 16), (255, 0, 0))
    image.paste((0, 255, 0), (16, 0, 32, 16))
    (tmp_path / "train").mkdir()
    image.save(tmp_path / "train" / "wide.png")
    pixels = load_dataset("imagefolder", "train", root=tmp_path, size=8).pixels
    assert pixels.shape == (1, 3, 8, 8)
    assert torch.equal(pixels[0, :, 4, 4], torch.tensor([0, 255, 0], dtype=torch.uint8))
    assert pixels[0, 0].max() == 0


def test_resampling_is_antialiased(tmp_path):
    """A checkerboard of single pixels, reduced four times, is grey; picking pixels would give black or white."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    (tmp_path / "train").mkdir()
    Image.fromarray(board).save(tmp_path / "train" / "board.png")
    pixels = load_dataset("imagefolder", "train", root=tmp_path, size=16).pixels.float()
    assert (pixels - 127.5).abs().max() < 8


def test_images_of_several_sizes_need_one(tmp_path):
    write_folder(tmp_path / "train", [0])
    picture(1, (10, 14)).save(tmp_path / "train" / "other.png")
    with pytest.raises(DatasetError, match="other.png' is 10x14, the first image is 12x12; give a size"):
        load_dataset("imagefolder", "train", root=tmp_path)
    assert len(load_dataset("imagefolder", "train", root=tmp_path, size=8)) == 2


def test_folder_classes_are_those_of_both_splits(tmp_path):
    write_folder(tmp_path / "train" / "b", [0])
    write_folder(tmp_path / "train" / "c", [1])
    write_folder(tmp_path / "val" / "a", [2])
    write_folder(tmp_path / "val" / "c", [3])
    assert load_dataset("imagefolder", "train", root=tmp_path).labels.tolist() == [1, 2]
    assert load_dataset("imagefolder", "test", root=tmp_path).labels.tolist() == [0, 2]


def test_a_folder_without_splits_holds_out_every_tenth(tmp_path):
    write_folder(tmp_path / "x", range(20))
    write_folder(tmp_path / "y", range(20, 30))
    train, test = (load_dataset("imagefolder", split, root=tmp_path) for split in ("train", "test"))
    assert (len(train), test.labels.tolist()) == (27, [0, 0, 1])
    assert torch.equal(test.pixels[0], torch.from_numpy(np.asarray(picture(9)).copy()).permute(2, 0, 1))


def test_a_split_that_is_missing_beside_the_other(tmp_path):
    write_folder(tmp_path / "train" / "a", [0])
    with pytest.raises(DatasetError, match="holds 'train', but no 'test' or 'val'"):
        load_dataset("imagefolder", "test", root=tmp_path)


def test_corrupt_files_are_named_by_path(tmp_path):
    write_folder(tmp_path / "train" / "a", range(2))
    (tmp_path / "train" / "a" / "bad.jpg").write_bytes(b"\xff\xd8\xff junk")
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image, not looked at")
    with pytest.raises(DatasetError, match=r"a/bad.jpg' cannot be decoded"):
        load_dataset("imagefolder", "train", root=tmp_path)
    assert load_dataset("imagefolder", "train", root=tmp_path, skip_corrupt=True).skipped == 1


@pytest.mark.parametrize("below", ["afhq", "."])
@pytest.mark.parametrize("held_out", ["test", "val"])
def test_afhq_layout(tmp_path, below, held_out):
    for split in ("train", held_out):
        for label, name in enumerate(("cat", "dog", "wild")):
            write_folder(tmp_path / below / split / name, range(label + 1))
    for split in ("train", "test"):
        images = load_dataset("afhq", split, root=tmp_path, size=8)
        assert images.labels.tolist() == [0, 1, 1, 2, 2, 2]
        assert images.pixels.shape == (6, 3, 8, 8)


def test_afhq_needs_its_three_classes(tmp_path):
    write_folder(tmp_path / "train" / "cat", [0])
    with pytest.raises(DatasetError, match="no folder .*dog'; AFHQ has cat, dog and wild"):
        load_dataset("afhq", "train", root=tmp_path)


def test_real_afhq_folder(shared):
    images = load_dataset("afhq", "test", root=shared / "data" / "afhq-folder", size=64)
    files = list((shared / "data" / "afhq-folder").rglob("*.jpg"))
    assert images.pixels.shape == (len(files), 3, 64, 64)
    assert images.labels.unique().tolist() == [0, 1, 2]


def test_real_parquet(shared):
    cats = load_dataset("afhq-cat", "test", root=shared / "data", size=16)
    assert cats.pixels.shape == (500, 3, 16, 16)
    cifar = load_dataset("cifar10-jpeg", "test", root=shared / "data")
    assert cifar.pixels.shape == (10000, 3, 32, 32)
    assert cifar.labels.bincount().tolist() == [1000] * 10


def fingerprint(name, root, split="train", **options):
    return dataset_fingerprint(name, split, root=root, **options)


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_a_fingerprint_is_of_the_bytes_and_of_how_they_are_read(tmp_path, kind):
    here, there = tmp_path / "here", tmp_path / "there"
    for root, seed in ((here, 0), (there, 1)):
        if kind == "parquet":
            write_parquet(root / "train.parquet", [encoded(seed)], [0])
        else:
            write_folder(root / "train" / "a", [0, 1])
    first = fingerprint(kind, here)
    (file,) = list(here.rglob("train.parquet")) or [here / "train" / "a" / "000.png"]
    os.utime(file, (0, 0))
    assert fingerprint(kind, here) == first
    if kind == "imagefolder":
        assert fingerprint(kind, there) == first  # wherever the folder lies
        picture(2).save(there / "train" / "a" / "001.png")
    others = [fingerprint(kind, there), fingerprint(kind, here, size=8), fingerprint(kind, here, skip_corrupt=True)]
    assert len({first, *others}) == 4
    with pytest.raises(DatasetError):
        fingerprint(kind, here, split="test")


def test_a_fingerprint_does_not_depend_on_the_order_of_listing(tmp_path, monkeypatch):
    write_folder(tmp_path / "train" / "a", range(5))
    first, iterdir = fingerprint("imagefolder", tmp_path), Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: reversed(list(iterdir(folder))))
    assert fingerprint("imagefolder", tmp_path) == first


def test_a_fingerprint_sees_labels_move(tmp_path):
    write_folder(tmp_path / "train" / "b", [0])
    write_folder(tmp_path / "test" / "b", [1])
    first = fingerprint("imagefolder", tmp_path)
    write_folder(tmp_path / "test" / "a", [2])
    assert load_dataset("imagefolder", "train", root=tmp_path).labels.tolist() == [1]
    assert fingerprint("imagefolder", tmp_path) != first


def test_nothing_is_decoded_for_a_fingerprint(tmp_path):
    write_parquet(tmp_path / "train.parquet", [b"junk"], [0])
    assert len(fingerprint("parquet", tmp_path)) == 64
