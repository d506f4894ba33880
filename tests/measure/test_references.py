"""What samples are compared with is part of what a run is: other real images are never mixed into it."""

import shutil

import pytest
from in_process import InProcess

from harness.datasets import dataset_fingerprint
from harness.errors import StoreError
from harness.measure import run_matrix as module
from harness.measure.cells import Subject
from harness.measure.expand import expand
from harness.measure.matrix import Matrix, load_matrix
from harness.measure.references import latest, reference_digest, references
from harness.measure.run_matrix import run_matrix
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
