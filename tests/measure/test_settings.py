"""Guidance and denoising of a cell, what is done again, and what is skipped: from the matrix to the report."""

import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from analysis.summary import print_summary
from harness.errors import HarnessError
from harness.flows import load_flow
from harness.flows.latents import cycling_labels, indexed_latents
from harness.measure import expand as plan
from harness.measure.matrix import Matrix, load_matrix
from harness.measure.run_matrix import run_matrix
from harness.measure.sources import matrix_of


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.notes = []
        self.begin = self.unit = self.advance = lambda *values: None
        self.note = self.notes.append

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


def matrix(checkpoint, **more):
    raw = {
        "name": "settings",
        "device": "cpu",
        "datasets": [
            {
                "name": "digits",
                "checkpoint": str(checkpoint),
                "guidance": [{"scale": 0.0}, {"scale": 1.5}],
                "denoise": [False, 0.2],
            },
            {"name": "cifar100", "optional": True},
        ],
        "decoders": [{"name": "sequential"}, {"name": "broken_decoders:Overflows", "label": "overflows"}],
        "grid": {"batch_sizes": [2]},
        "timing": {"rounds": 1},
        "quality": {"num_samples": 4},
        "memory": {"enabled": False},
        "residuals": {"enabled": False},
    }
    return Matrix.model_validate(raw | more)


@pytest.fixture(scope="module")
def done(tiny_checkpoint, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("HARNESS_DATA", raising=False)
        reporter = Notes()
        run = run_matrix(matrix(tiny_checkpoint), tmp_path_factory.mktemp("runs") / "run", reporter, threads=1)
    cells = run.table("cells")
    join = {
        name: run.table(name)
        .drop(columns=["dataset", "guidance", "denoise", "label"], errors="ignore")
        .merge(cells[["cell_id", "dataset", "guidance", "denoise", "label"]], on="cell_id")
        for name in ("timings", "quality")
    }
    return SimpleNamespace(run=run, cells=cells, notes=reporter.notes, **join)


def test_every_setting_is_a_cell_and_a_group(done):
    measured = done.cells[done.cells["dataset"] == "digits"]
    assert len(measured) == 2 * 2 * 2 and measured["group_id"].nunique() == 4
    scales = {json.loads(text)["scale"] for text in measured["guidance"].dropna()}
    assert scales == {1.5} and set(measured["denoise"].dropna()) == {0.2}


def test_denoising_is_timed_apart_and_only_where_asked(done):
    timings = done.timings[done.timings["dataset"] == "digits"]
    assert (timings["status"] == "ok").all()
    assert (timings["denoise_s"].notna() == timings["denoise"].notna()).all()
    assert (timings["denoise_s"].dropna() > 0).all()


def test_quality_is_of_the_denoised_samples(done, tiny_checkpoint):
    quality = done.quality[(done.quality["dataset"] == "digits") & (done.quality["label"] == "sequential")]
    plain, denoised = quality[quality["denoise"].isna()], quality[quality["denoise"].notna()]
    assert (quality["deviation_max"] < 1e-5).all()  # of denoised samples from denoised ones
    assert plain["fid"].notna().all() and not set(plain["fid"].round(6)) & set(denoised["fid"].round(6))
    guided = plain.set_index(plain["guidance"].notna())["fid"]
    assert abs(guided[True] - guided[False]) > 1e-6


def test_samples_of_a_denoised_cell(tiny_checkpoint):
    from harness.decoders import build_decoder
    from harness.measure.tasks.sums import exact_samples

    cell = next(c for c in plan.expand(matrix(tiny_checkpoint)) if c.denoise and c.guidance is None)
    flow = load_flow(tiny_checkpoint)
    latents, labels = indexed_latents(flow, 0, range(3)), cycling_labels(flow, range(3))
    images = build_decoder("sequential").decode(flow, latents, labels).images
    expected = flow.denoise(images, 0.2, labels)
    torch.testing.assert_close(exact_samples(cell, flow, range(3)), expected)
    assert (expected - images).abs().max() > 1e-3


def test_what_is_decoded_again_is_counted(done):
    for rows, expected in ((done.timings, 1), (done.quality, 2)):  # batches of 2: one a round, two of the samples
        rows = rows[rows["dataset"] == "digits"].set_index("label")["nonfinite_retries"]
        assert set(rows["overflows"]) == {expected} and set(rows["sequential"]) == {0}


def test_an_optional_checkpoint_that_is_not_there_is_skipped_with_its_reason(done, tmp_path, capsys):
    skipped = done.cells[done.cells["dataset"] == "cifar100"]
    assert len(skipped) == 2 and skipped["num_tokens"].isna().all() and skipped["checkpoint_digest"].isna().all()
    for table in ("timings", "quality"):
        rows = done.run.table(table)
        rows = rows[rows["cell_id"].isin(skipped["cell_id"])]
        assert set(rows["status"]) == {"skipped"} and rows["error"].str.contains("no flow 'cifar100'").all()
    assert done.run.manifest["skipped"].keys() == {"cifar100"}
    assert [note for note in done.notes if note.startswith("cifar100 is skipped")]
    print_summary(done.run, Console(width=200))
    printed = capsys.readouterr().out
    assert "Skipped: cifar100" in printed and "guidance 1.5, denoised by 0.2" in printed
    assert "layers were decoded again" in printed


def test_the_report_takes_it(done, tmp_path):
    from analysis.report import build

    page = build([done.run.path], tmp_path).read_text()
    assert "cifar100" in page and "skipped" in page


def test_nothing_but_skipped_datasets_is_no_error(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    only = matrix(tiny_checkpoint, datasets=[{"name": "cifar100", "optional": True}])
    for resume in (False, True):
        run = run_matrix(only, tmp_path / "run", Notes(), resume=resume, threads=1)
        assert list(run.table("timings")["status"].unique()) == ["skipped"]
        assert len(run.table("cells")) == 2 == len(run.table("quality"))
    print_summary(run, Console(width=200))


def test_one_that_is_not_optional_is_an_error(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(HarnessError, match="tarflow-afhq-256"):
        plan.expand(matrix(tiny_checkpoint, datasets=[{"name": "afhq", "checkpoint": "tarflow-afhq-256"}]))


def test_published_settings_and_a_checkpoint_as_a_matrix(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = matrix_of("tarflow-afhq-256", "fast", {"device": "cpu"})
    assert (asked.name, asked.datasets[0].name, asked.datasets[0].published) == ("tarflow-afhq-256", "afhq", True)
    optional = asked.model_copy(update={"datasets": [asked.datasets[0].model_copy(update={"optional": True})]})
    cells = plan.expand(optional)
    assert {json.loads(cell.guidance)["scale"] for cell in cells} == {3.4}
    assert [cell.denoise for cell in cells] == pytest.approx([0.07 * 1.4**0.5] * len(cells))
    assert {cell.decoder for cell in cells} == {"sequential", "ujd", "sejd"}


@pytest.mark.parametrize("profile", [None, "fast", "full"])
@pytest.mark.parametrize("name", ["cifar100", "paper-table1"])
def test_matrices_whose_checkpoints_are_elsewhere_expand(name, profile, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    matrix = load_matrix(name, profile, {"device": "cpu"})
    cells = plan.expand(matrix)
    assert {cell.dataset for cell in cells} == {dataset.name for dataset in matrix.datasets}
    assert {cell.dataset for cell in cells if cell.absent} == {d.name for d in matrix.datasets if d.optional}
