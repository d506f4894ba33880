"""Many samples as files: the same whatever draws them, and none drawn twice."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_runner import Quiet

from harness.cli import app
from harness.datasets import load_dataset, to_pixels
from harness.datasets.images import save_grid
from harness.errors import HarnessError
from harness.measure.sampling import output_kind, read_request, sample_to_grid
from harness.measure.tasks.samples import DrawTask, _pngs, draw_to_files
from harness.measure.workers.local import Local


@pytest.fixture
def request_of(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("harness.measure.tasks.samples.SHARD", 4)
    torch.set_num_threads(1)

    def request_of(spec="ujd tau=0.5", **options):
        given = {"count": 11, "batch_size": 3, "device": "cpu"}
        return read_request(str(tiny_checkpoint), spec, **(given | options))

    return request_of


def draw(request, out, stop=None, workers=1):
    reporter = Quiet(stop)
    return draw_to_files(request, out, Local(workers), reporter, threads=1), reporter


def wanted(request):
    """What one process draws in one go, as pixels by index."""
    images = to_pixels(request.draw(request.subject.load(), range(request.count)).images)
    return {index: image.squeeze(0).numpy() for index, image in enumerate(images)}


def pictures(folder):
    return {int(path.stem): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


def same(one, other):
    return set(one) == set(other) and all(np.array_equal(one[index], other[index]) for index in one)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_folder_of_images_is_what_one_process_draws(request_of, tmp_path, workers):
    request = request_of()
    said, _ = draw(request, tmp_path / "many", workers=workers)
    assert "11 samples" in said and same(pictures(tmp_path / "many"), wanted(request))
    assert {path.parent.name for path in (tmp_path / "many").rglob("*.png")} == {str(label) for label in range(10)}
    _, reporter = draw(request, tmp_path / "many")
    assert reporter.units == []


def test_samples_without_classes_lie_side_by_side(request_of, tmp_path):
    draw(request_of(labels="-1"), tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.png"))) == 11


def test_a_killed_call_is_gone_on_with(request_of, tmp_path):
    request = request_of()
    with pytest.raises(KeyboardInterrupt):
        draw(request, tmp_path / "x.parquet", stop=1)
    assert not (tmp_path / "x.parquet").exists()
    _, reporter = draw(request, tmp_path / "x.parquet")
    assert [title for _, title in reporter.units] == ["samples 6 to 10"]
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["index"].to_pylist() == list(range(11))
    assert table["label"].to_pylist() == [index % 10 for index in range(11)]
    drawn = {row["index"]: np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in table.to_pylist()}
    assert same(drawn, wanted(request))
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
    assert "already" in draw(request, tmp_path / "x.parquet")[0]


def test_what_is_there_is_not_mixed_with_other_samples(request_of, tmp_path):
    for out in (tmp_path / "many", tmp_path / "x.parquet"):
        draw(request_of(), out)
        with pytest.raises(HarnessError, match="drawn otherwise"):
            draw(request_of(seed=1), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "y.parquet").write_text("mine")
    for out in (tmp_path / "mine", tmp_path / "y.parquet"):
        with pytest.raises(HarnessError, match="another --out"):
            draw(request_of(), out)
    assert (tmp_path / "y.parquet").read_text() == "mine"


@pytest.mark.parametrize(("labels", "wanted_labels"), [(None, [*range(10), 0]), ("-1", None)])
@pytest.mark.parametrize("suffix", [".parquet", ".PARQUET"])
def test_our_parquet_of_samples_is_read_as_it_was_drawn(request_of, tmp_path, labels, wanted_labels, suffix):
    request = request_of(labels=labels)
    draw(request, tmp_path / f"train{suffix}")
    read = load_dataset("parquet", "train", root=tmp_path)
    assert read.pixels.shape == (11, 1, 8, 8)  # grey, as they are
    assert same(dict(enumerate(read.pixels[:, 0].numpy())), wanted(request))
    assert (None if read.labels is None else read.labels.tolist()) == wanted_labels


def test_a_damaged_shard_is_a_sentence(request_of, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        draw(request_of(), tmp_path / "x.parquet", stop=1)
    (part,) = (tmp_path / ".x.parquet.parts").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(HarnessError, match="a shard in '.*x.parquet.parts' is damaged"):
        draw(request_of(), tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


def test_our_folder_of_samples_is_read_as_it_was_drawn(request_of, tmp_path):
    request = request_of(count=12)
    draw(request, tmp_path / "train")
    read = load_dataset("imagefolder", "train", root=tmp_path)
    order = sorted(range(12), key=lambda index: (index % 10, index))
    assert read.pixels.shape == (12, 1, 8, 8) and read.labels.tolist() == [index % 10 for index in order]
    assert same(dict(zip(order, read.pixels[:, 0].numpy(), strict=True)), wanted(request))


KINDS = {"s.png": "grid", "s.PNG": "grid", "s.jpg": "grid", "s.JPeg": "grid", "s.webp": "grid", "s.tiff": "grid",
         "x.Parquet": "parquet", "folder": "folder", "run.5": "folder", ".hidden": "folder"}  # fmt: skip


def test_the_suffix_says_how_samples_are_written(request_of, tmp_path):
    assert {name: output_kind(tmp_path / name) for name in KINDS} == KINDS
    for name in ("s.npz", "s.pngg", "s.mp4", "s.zip"):
        with pytest.raises(HarnessError, match=rf"samples are not written as '\{name[1:]}': give one image \(.bmp, "):
            draw_to_files(request_of(), tmp_path / name, Local(1), Quiet(), threads=1)
    (tmp_path / "my.samples").mkdir()
    assert output_kind(tmp_path / "my.samples") == "folder"


@pytest.mark.parametrize("name", ["s.PNG", "s.jpg", "s.JPEG", "s.webp", "s.gif", "s.bmp", "s.tif", "s.pnm"])
def test_a_grid_is_written_in_the_format_of_its_suffix(request_of, tmp_path, name):
    said = sample_to_grid(request_of(count=2), tmp_path / "new" / name, threads=1)
    kinds = {"jpg": "JPEG", "tif": "TIFF", "pnm": "PPM"}
    with Image.open(tmp_path / "new" / name) as picture:
        assert picture.format == kinds.get(name[2:], name[2:].upper()) and picture.size == (68, 32)
    assert name in said


def test_a_grid_that_a_format_cannot_take_or_that_is_a_folder(request_of, tmp_path):
    for name in ("wide.webp", "wide.jpg"):
        with pytest.raises(HarnessError, match=r"takes no image of 70,000 x 1 pixels; a .png does"):
            save_grid(torch.zeros(1, 1, 1, 70_000), tmp_path / name, 1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s.png").mkdir()
    with pytest.raises(HarnessError, match="s.png' is a folder"):
        sample_to_grid(request_of(), tmp_path / "s.png")


def test_the_command_takes_a_suffix_in_any_case_and_refuses_an_unknown_one(tiny_checkpoint, tmp_path):
    said = {}
    for name in ("s.PNG", "s.npz"):
        command = ["sample", str(tiny_checkpoint), "-n", "1", "--device", "cpu", "--out", str(tmp_path / name)]
        said[name] = CliRunner().invoke(app, command)
    assert said["s.PNG"].exit_code == 0 and (tmp_path / "s.PNG").is_file()
    assert isinstance(said["s.npz"].exception, HarnessError) and len(list(tmp_path.iterdir())) == 1


def test_samples_of_other_channels_are_no_image_files():
    with pytest.raises(HarnessError, match="samples of 2 channels"):
        next(_pngs(torch.zeros(1, 2, 4, 4)))


def test_shards_are_whole_batches(request_of):
    units = DrawTask(request_of(count=10**6, batch_size=96), parquet=False).units(set())
    assert sum(len(unit.indices) for unit in units) == 10**6
    assert all(unit.indices.start % 96 == 0 for unit in units)
