"""Many samples as files: the same whatever draws them, and none drawn twice."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_runner import Quiet

from harness.datasets import to_pixels
from harness.errors import HarnessError
from harness.measure.sampling import read_request
from harness.measure.tasks.samples import DrawTask, draw_to_files
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


def test_shards_are_whole_batches(request_of):
    units = DrawTask(request_of(count=10**6, batch_size=96), parquet=False).units(set())
    assert sum(len(unit.indices) for unit in units) == 10**6
    assert all(unit.indices.start % 96 == 0 for unit in units)
