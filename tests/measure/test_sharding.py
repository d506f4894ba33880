"""One FID, whatever the number of workers, the batch size, or the executor."""

import pytest
from test_runner import Quiet

from harness.measure.matrix import Matrix
from harness.measure.run_matrix import run_matrix
from harness.measure.workers.local import Local


def quality(checkpoint, out, workers, batch_sizes, decoders):
    """Rows of a run, by decoder and batch size, and its units."""
    reporter = Quiet()
    run = run_matrix(matrix_of(checkpoint, batch_sizes, decoders), out, reporter, threads=1, executor=Local(workers))
    assert not (out / "shards").exists()
    rows = run.table("quality").merge(run.table("cells")[["cell_id", "label", "batch_size"]], on="cell_id")
    assert (rows["status"] == "ok").all()
    return rows.set_index(["label", "batch_size"]).sort_index(), reporter.units


def matrix_of(checkpoint, batch_sizes, decoders):
    return Matrix.model_validate(
        {
            "name": "sharded",
            "device": "cpu",
            "datasets": [{"name": "digits", "checkpoint": checkpoint}],
            "decoders": [{"name": name, **options} for name, options in decoders],
            "grid": {"batch_sizes": batch_sizes},
            "timing": {"rounds": 1, "warmup": 0},
            "residuals": {"enabled": False},
            "memory": {"enabled": False},
            "quality": {"num_samples": 96},
        }
    )


FIGURES = ["fid", "kid", "deviation_rmse", "reconstruction_mse"]


@pytest.fixture(scope="module", params=["tiny", pytest.param("digits", marks=pytest.mark.slow)])
def runs(request, tiny_checkpoint, tmp_path_factory):
    checkpoint = str(tiny_checkpoint) if request.param == "tiny" else "digits"
    decoders = [("sequential", {}), ("sejd", {"tau": [0.5]})]
    return {
        workers: quality(checkpoint, tmp_path_factory.mktemp("runs") / "run", workers, [4, 8, 16], decoders)
        for workers in (1, 2, 3)
    }


def test_the_number_of_workers_changes_no_figure(runs):
    alone, units = runs[1]
    assert "samples" not in {work for work, _ in units}
    for workers in (2, 3):
        rows, units = runs[workers]
        shards = [title for work, title in units if work == "samples"]
        assert len(shards) == workers * len(rows)
        assert (rows[FIGURES] - alone[FIGURES]).abs().max().max() < 1e-6


def test_the_batch_size_changes_no_figure_where_it_is_no_scope_of_a_stopping_rule(runs):
    exact = runs[3][0].loc["sequential"]
    assert exact["fid"].max() - exact["fid"].min() < 1e-6
    # The batch is the scope of SeJD's stopping rule: other batches give other samples, and so another FID.
    sejd = runs[3][0].loc["sejd"]
    assert sejd["fid"].max() - sejd["fid"].min() > 1e-6


def test_shards_that_are_there_are_not_measured_again(tiny_checkpoint, tmp_path):
    matrix = matrix_of(str(tiny_checkpoint), [8], [("sequential", {})])
    with pytest.raises(KeyboardInterrupt):
        run_matrix(matrix, tmp_path / "run", stopped := Quiet(5), threads=1, executor=Local(3))
    assert [work for work, _ in stopped.units] == ["timing", "layers", "samples", "samples", "samples"]
    shards = sorted((tmp_path / "run" / "shards").iterdir())
    assert len(shards) == 3
    shards[1].unlink()
    run_matrix(matrix, tmp_path / "run", resumed := Quiet(), threads=1, executor=Local(3), resume=True)
    assert [work for work, _ in resumed.units] == ["samples", "quality"]
