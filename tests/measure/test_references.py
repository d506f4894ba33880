"""What samples are compared with is part of what a run is: other real images are never mixed into it."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest
from in_process import InProcess
from PIL import Image

from harness.datasets import dataset_fingerprint
from harness.errors import StoreError
from harness.measure import run_matrix as module
from harness.measure.cells import Subject
from harness.measure.expand import expand
from harness.measure.matrix import Matrix, load_matrix
from harness.measure.references import latest, reference_digest, references
from harness.measure.run_matrix import run_matrix
from harness.measure.tasks import quality
from harness.metrics.features import shipped_network
from harness.progress import LineReporter
from harness.runs import environment

A, B, GONE = ({"digits": {"images": images, "features": "network"}} for images in ("a", "b", None))


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch):
    """Runs a small matrix in one folder, whose images are said to be these."""
    raw = {
        "name": "small",
        "device": "cpu",
        "datasets": [{"name": "digits", "checkpoint": str(tiny_checkpoint)}],
        "decoders": [{"name": "sequential"}],
        "grid": {"batch_sizes": [2]},
        "timing": {"rounds": 1},
        "quality": {"num_samples": 4},
        "memory": {"enabled": False},
        "residuals": {"enabled": False},
    }

    def measured(now, out="run", resume=True):
        monkeypatch.setattr(module, "references", lambda *_: now)
        matrix = Matrix.model_validate(raw)
        return run_matrix(matrix, tmp_path / out, LineReporter(), resume=resume, threads=1, executor=InProcess())

    return measured


def test_other_images_under_the_same_name_are_refused(run):
    run(A)
    with pytest.raises(StoreError, match="other real images of 'digits'.*another --out"):
        run(B)
    assert run(A).table("quality")["reference_digest"].tolist() == [reference_digest(A["digits"])]
    run(GONE)  # a finished run is summarised where its images are not at hand


def test_images_may_come_later_but_then_they_stay(run):
    run(GONE)
    run(A)
    with pytest.raises(StoreError, match="other real images"):
        run(B)


def test_what_is_compared_with_is_part_of_a_cells_identity_and_not_of_its_key(run):
    (a,), (b,) = (run(now, out).table("cells").to_dict("records") for now, out in ((A, "a"), (B, "b")))
    assert a["cell_id"] != b["cell_id"] and a["cell_key"] == b["cell_key"]


def test_another_feature_network_is_refused(tmp_path):
    other = {"digits": {"images": "a", "features": "another"}}
    with pytest.raises(StoreError, match="other feature network"):
        latest(tmp_path, A, other)
    assert latest(tmp_path, A, GONE) == A


def test_references_are_found_without_decoding_and_none_is_wanted_without_quality():
    matrix = load_matrix("quickstart")
    found = references(matrix)["digits"]
    assert found["images"] == dataset_fingerprint("digits", "train") and found["features"]
    assert references(matrix.model_copy(update={"quality": matrix.quality.model_copy(update={"enabled": False})})) == {}


@pytest.mark.parametrize(
    ("channels", "network", "reason"),
    [
        pytest.param(1, "digits", None, id="grey"),
        pytest.param(3, "digits", "'imagefolder' holds images of shape (3, 8, 8), not (1, 8, 8)", id="colour"),
        pytest.param(1, "cifar10-jpeg", "takes images of shape (B, 3, H, W)", id="grey, and a network of colours"),
    ],
)
def test_a_folder_gives_a_flow_of_its_channels_fid_and_another_a_sentence(
    tiny_checkpoint, tmp_path, monkeypatch, channels, network, reason
):
    for row, image in enumerate(np.random.default_rng(0).integers(0, 256, (20, 8, 8, channels), np.uint8)):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(tmp_path / "images" / "a" / f"{row}.png")
    monkeypatch.setattr(quality, "feature_extractor", lambda *_, **__: shipped_network(network))
    raw = {"name": "small", "datasets": [{"name": "imagefolder", "checkpoint": str(tiny_checkpoint)}],
           "decoders": [{"name": "sequential"}], "grid": {"batch_sizes": [2]}, "timing": {"rounds": 1}, "device": "cpu",
           "quality": {"num_samples": 4}, "memory": {"enabled": False}, "residuals": {"enabled": False}}  # fmt: skip
    options = {"data_root": str(tmp_path / "images"), "threads": 1, "executor": InProcess()}
    run = run_matrix(Matrix.model_validate(raw), tmp_path / "run", LineReporter(), **options)
    (row,) = run.table("quality").to_dict("records")
    assert row["status"] == "ok" and math.isfinite(row["deviation_rmse"])
    assert pd.notna(row["fid"]) == pd.isna(row["error"]) == (reason is None)
    assert reason is None or reason in row["error"]


def test_model_cards_and_trainings_are_no_part_of_the_code_version(tmp_path, monkeypatch):
    copy = tmp_path / "harness"
    shutil.copytree(environment.ROOT, copy, ignore=shutil.ignore_patterns("*.safetensors", "*.png"))
    monkeypatch.setattr(environment, "ROOT", copy)
    version = environment.code_version.__wrapped__
    before = version()
    for harmless in ("flows/assets/digits.md", "training/loop.py", "measure/engine.py", "fitting/tune.py"):
        with (copy / harmless).open("a") as file:
            file.write("\n# another word\n")
        assert version() == before, harmless
    for decisive in ("flows/latents.py", "decoders/solver.py"):
        with (copy / decisive).open("a") as file:
            file.write("\n# another word\n")
        assert version() != before, decisive


def test_planning_fits_nothing(tiny_checkpoint, tmp_path):
    path = tmp_path / "fresh.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes())
    raw = {"name": "x", "device": "cpu", "datasets": [{"name": "digits", "checkpoint": str(path)}]}
    (cell,) = expand(Matrix.model_validate(raw | {"decoders": [{"name": "fitted"}]}))
    assert cell.fitted is None and [entry.name for entry in tmp_path.iterdir()] == ["fresh.safetensors"]


def test_a_subject_is_what_determines_it(tiny_checkpoint):
    def made(**facts):
        return Subject.of(tiny_checkpoint, "tiny", **{"seed": 0, "device": "cpu", "probe": "crm"} | facts)

    assert made() == made()
    assert (
        len({made(**{name: value}).cell_key for name, value in (("seed", 1), ("probe", "cost"))} - {made().cell_key})
        == 2
    )
    assert made(code_version="x").cell_key == made().cell_key and made(code_version="x").cell_id != made().cell_id
