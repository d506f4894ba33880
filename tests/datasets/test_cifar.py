"""The official binary archives: their layout, and what is refused."""

import gzip
import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.cli import app
from harness.datasets import cifar, dataset_fingerprint, load_dataset
from harness.datasets.cifar import Cifar10, Cifar100
from harness.errors import DatasetError, HarnessError

SPECS = {"cifar10": Cifar10, "cifar100": Cifar100}


def records(spec, n, seed):
    """n records, and the pixels and labels they hold."""
    generator = np.random.default_rng(seed)
    labels = np.stack([generator.integers(0, classes, n) for classes in spec.label_classes], axis=1).astype(np.uint8)
    pixels = generator.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    return np.concatenate([labels, pixels.reshape(n, -1)], axis=1).tobytes(), pixels, labels[:, -1]


def contents(spec, n=4):
    names = [*spec.members["train"], *spec.members["test"]]
    return {name: records(spec, n, seed) for seed, name in enumerate(names)}


def write_archive(root, spec, files, folder=None):
    path = root / spec.archive
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder or spec.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(params=sorted(SPECS))
def name(request):
    return request.param


@pytest.mark.parametrize("extracted", [False, True])
def test_both_splits_are_read(name, extracted, tmp_path):
    spec = SPECS[name]
    made = contents(spec)
    if extracted:
        (tmp_path / spec.folder).mkdir()
        for member, (content, _, _) in made.items():
            (tmp_path / spec.folder / member).write_bytes(content)
    else:
        write_archive(tmp_path, spec, {member: content for member, (content, _, _) in made.items()})
    for split in ("train", "test"):
        images = load_dataset(name, split, root=tmp_path)
        expected = [made[member] for member in spec.members[split]]
        assert torch.equal(images.pixels, torch.from_numpy(np.concatenate([pixels for _, pixels, _ in expected])))
        assert images.labels.tolist() == np.concatenate([labels for _, _, labels in expected]).tolist()
        assert images.skipped == 0


def test_record_sizes_are_the_official_ones():
    assert len(records(Cifar10, 1, 0)[0]) == 3073
    assert len(records(Cifar100, 1, 0)[0]) == 3074


@pytest.mark.parametrize("extracted", [False, True])
def test_a_file_cut_short_by_a_byte_is_refused(name, extracted, tmp_path):
    spec = SPECS[name]
    files = {member: content for member, (content, _, _) in contents(spec).items()}
    files[spec.members["test"][0]] = files[spec.members["test"][0]][:-1]
    if extracted:
        (tmp_path / spec.folder).mkdir()
        for member, content in files.items():
            (tmp_path / spec.folder / member).write_bytes(content)
    else:
        write_archive(tmp_path, spec, files)
    with pytest.raises(DatasetError, match=rf"{spec.members['test'][0]}' holds .*record 3 is cut short"):
        load_dataset(name, "test", root=tmp_path, skip_corrupt=True)


@pytest.mark.parametrize("cut", [1, 8, 200])
def test_an_archive_cut_short_is_refused(name, cut, tmp_path):
    spec = SPECS[name]
    path = write_archive(tmp_path, spec, {member: content for member, (content, _, _) in contents(spec).items()})
    path.write_bytes(path.read_bytes()[:-cut])
    for split in ("train", "test"):
        with pytest.raises(DatasetError, match="cut short or corrupt"):
            load_dataset(name, split, root=tmp_path)


def test_a_flipped_bit_in_the_archive_is_noticed(tmp_path):
    spec = Cifar100
    path = write_archive(tmp_path, spec, {member: content for member, (content, _, _) in contents(spec).items()})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="cut short or corrupt"):
        load_dataset("cifar100", "train", root=tmp_path)


def test_no_archive_at_all_under_its_name(name, tmp_path):
    (tmp_path / SPECS[name].archive).write_bytes(gzip.compress(b"no tar"))
    with pytest.raises(DatasetError, match=SPECS[name].archive):
        load_dataset(name, "train", root=tmp_path)


def test_the_python_version_of_the_archive_is_refused(name, tmp_path):
    spec = SPECS[name]
    write_archive(tmp_path, spec, {"data_batch_1": b"a pickle"}, folder="cifar-10-batches-py")
    with pytest.raises(DatasetError, match="expected the binary version"):
        load_dataset(name, "train", root=tmp_path)


def test_impossible_labels_name_the_record_or_are_counted(name, tmp_path):
    spec = SPECS[name]
    files = {member: content for member, (content, _, _) in contents(spec).items()}
    test = spec.members["test"][0]
    size = len(files[test]) // 4
    broken = bytearray(files[test])
    broken[2 * size] = 200
    files[test] = bytes(broken)
    write_archive(tmp_path, spec, files)
    with pytest.raises(DatasetError, match=rf"{test}', record 2: label \[200"):
        load_dataset(name, "test", root=tmp_path)
    images = load_dataset(name, "test", root=tmp_path, skip_corrupt=True)
    assert (len(images), images.skipped) == (3, 1)


def test_other_sizes_are_resampled(tmp_path):
    write_archive(tmp_path, Cifar10, {member: content for member, (content, _, _) in contents(Cifar10).items()})
    assert load_dataset("cifar10", "test", root=tmp_path, size=16).pixels.shape == (4, 3, 16, 16)


def test_download_checks_what_it_fetched(name, tmp_path, monkeypatch):
    spec = SPECS[name]
    site = tmp_path / "site"
    site.mkdir()
    path = write_archive(site, spec, {member: content for member, (content, _, _) in contents(spec).items()})
    monkeypatch.setattr(cifar, "SITE", site.as_uri())
    with pytest.raises(HarnessError, match=f"expected {spec.md5}; it was discarded"):
        spec(root=tmp_path / "data").download()
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.setattr(spec, "md5", hashlib.md5(path.read_bytes()).hexdigest())
    result = CliRunner().invoke(app, ["download", name, "--data-root", str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    assert len(load_dataset(name, "test", root=tmp_path / "data")) == 4
    path.unlink()  # what is there is not fetched again
    spec(root=tmp_path / "data").download()


def test_no_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "SITE", (tmp_path / "nowhere").as_uri())
    with pytest.raises(HarnessError, match=rf"put it at '{tmp_path}/{Cifar10.archive}'"):
        Cifar10(root=tmp_path).download()


def test_a_fingerprint_tells_splits_and_contents_apart(name, tmp_path):
    spec = SPECS[name]
    made = {member: content for member, (content, _, _) in contents(spec).items()}
    write_archive(tmp_path, spec, made)
    train, test = (dataset_fingerprint(name, split, root=tmp_path) for split in ("train", "test"))
    assert train != test
    write_archive(tmp_path, spec, {member: content[::-1] for member, content in made.items()})
    assert dataset_fingerprint(name, "train", root=tmp_path) != train
    (tmp_path / spec.folder).mkdir()
    with pytest.raises(DatasetError, match=f"{spec.members['test'][0]}' cannot be read"):
        dataset_fingerprint(name, "test", root=tmp_path)
