"""Every suite of benchmarks/ runs: each of its methods once, on the smallest parameters, without asv."""

import inspect
import json
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUITES = ("decoding", "flows", "quality", "tables")


@pytest.fixture
def suite(request, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return import_module(f"benchmarks.{request.param}")


def classes(module):
    """What asv takes for benchmarks: classes that are not abstract and have such methods."""
    return [cls for _, cls in inspect.getmembers(module, inspect.isclass) if not inspect.isabstract(cls)
            and any(name.startswith("time_") for name in dir(cls))]  # fmt: skip


@pytest.mark.parametrize("suite", SUITES, indirect=True)
def test_every_benchmark_runs(suite):
    assert classes(suite)
    for cls in classes(suite):
        params = tuple(values[0] for values in cls.params)
        assert len(cls.param_names) == len(cls.params) and cls.version == "1"
        for name in [name for name in dir(cls) if name.startswith(("time_", "peakmem_", "track_"))]:
            benchmark = cls()
            benchmark.setup(*params)
            result = getattr(benchmark, name)(*params)
            getattr(benchmark, "teardown", lambda *params: None)(*params)
            assert (result is not None) == name.startswith("track_"), f"{cls.__name__}.{name}"


@pytest.mark.parametrize("suite", ["decoding"], indirect=True)
def test_tracked_costs_are_the_traces(suite):
    benchmark = suite.Decode()
    benchmark.setup("digits", "sequential", 0.5, 2)
    layers, tokens = benchmark.flow.num_layers, benchmark.flow.num_tokens
    assert benchmark.track_iterations() == benchmark.track_depth() == layers * (tokens - 1)
    assert benchmark.track_fpe() == 1 and benchmark.track_deviation() == 0
    assert benchmark.track_cache() > 0


@pytest.mark.parametrize("suite", ["decoding"], indirect=True)
def test_what_is_no_cell_of_the_matrix_is_left_out(suite, monkeypatch):
    monkeypatch.setattr(suite, "TAUS", [0.1, 0.5])
    with pytest.raises(NotImplementedError):
        suite.Decode().setup("digits", "sequential", 0.5, 2)


def test_asv_is_told_to_install_what_is_pinned():
    settings = json.loads((ROOT / "asv.conf.json").read_text())
    assert any("constraints.txt" in step for step in settings["install_command"])
    assert (ROOT / settings["benchmark_dir"] / "README.md").is_file()
