"""The registry that finds decoders, flows and datasets."""

import gc
import os
import signal
import warnings
from importlib.metadata import EntryPoint

import pytest
import torch

from harness.cli.catalog import print_catalog
from harness.decoders import decoders
from harness.errors import HarnessError
from harness.measure.matrix import load_matrix
from harness.registry import Registry, first_line, settings_kept
from harness.registry import registry as registry_module
from harness.registry.settings import FILTERS, SETTINGS


def registry():
    return Registry("gadget", package="harness.decoders", group="harness.no-such-group")


def test_modules_of_the_package_register_themselves():
    assert {"sequential", "ujd", "sejd"} <= set(decoders.names())


def test_every_decoder_says_what_it_is_in_one_line():
    for name, decoder in decoders.items():
        assert 20 < len(first_line(decoder)) <= 120, name


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(HarnessError, match="unknown decoder 'sequentail'; did you mean 'sequential'"):
        decoders.get("sequentail")


def test_a_path_is_imported():
    found = registry().get("harness.decoders.sejd:SelectiveJacobi")
    assert found is decoders.get("sejd")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_package.x:Y", "cannot import gadget"),
        ("harness.decoders.sejd:Nothing", "has no gadget 'Nothing'"),
        ("harness.decoders:maps", "is no gadget: neither a class nor a function"),
    ],
)
def test_a_path_that_leads_nowhere_is_a_sentence(path, words):
    with pytest.raises(HarnessError, match=words):
        registry().get(path)


def test_what_a_path_leads_to_is_called_as_it_is_registered():
    known = decoders.get("sejd")
    assert decoders.name_of(f"{known.__module__}:{known.__name__}") == decoders.name_of("sejd") == "sejd"
    assert registry().name_of("harness.errors:HarnessError") == "HarnessError"


def test_two_things_of_one_name_are_refused():
    gadgets = registry()
    gadgets.register("a")(Registry)
    gadgets.register("a")(Registry)  # the same thing again, as when a module is reloaded
    with pytest.raises(HarnessError, match="two gadgets are called 'a'"):
        gadgets.register("a")(HarnessError)


@pytest.fixture
def plugins(monkeypatch, tmp_path):
    """Three installed decoders, of which one works."""
    (tmp_path / "plugin_fine.py").write_text('class Fine:\n    """It works."""\n')
    (tmp_path / "plugin_broken.py").write_text("raise ValueError('version 3\\nis needed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    values = {"broken": "plugin_broken:X", "fine": "plugin_fine:Fine", "sejd": "plugin_fine:Fine"}
    entries = [EntryPoint(name, value, "gadgets") for name, value in values.items()]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: entries if group == "gadgets" else [])


def test_a_broken_plugin_hurts_only_itself(plugins):
    gadgets = Registry("gadget", package="harness.decoders", group="gadgets")
    gadgets.register("sejd")(Registry)
    assert gadgets.names() == ["fine", "sejd"]
    assert gadgets.get("fine").__doc__ == "It works."
    assert gadgets.get("sejd") is Registry
    with pytest.raises(HarnessError, match=r"gadget 'broken' is broken: 'plugin_broken:X' fails to load: version 3"):
        gadgets.get("broken")
    assert set(gadgets.broken) == {"broken", "sejd"}
    assert "two gadgets are called 'sejd'" in gadgets.broken["sejd"]
    with pytest.raises(HarnessError, match="did you mean 'fine'"):
        gadgets.get("fines")


def test_a_broken_plugin_is_listed_with_its_reason(monkeypatch, capsys):
    monkeypatch.setitem(decoders._broken, "bad", "'package:Bad' fails to load: no module named\n'x'")
    print_catalog("decoders")
    printed = capsys.readouterr().out
    assert "bad " in printed and "broken: 'package:Bad' fails to load: no module named 'x'  [plugin]" in printed
    assert "sejd " in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def x(:", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("class Own(BaseException): pass\nraise Own", "Own"),
        ("1 / 0", "division by zero"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_whatever_a_module_raises_is_a_sentence(text, said, tmp_path, monkeypatch):
    (tmp_path / "own_gadget.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HarnessError, match=f"cannot import gadget 'own_gadget:X': {said}"):
        registry().get("own_gadget:X")


def test_what_an_import_prints_and_changes_is_told_on_stderr_alone(tmp_path, monkeypatch, capsys):
    before = torch.get_num_threads()
    (tmp_path / "loud_gadget.py").write_text(
        f"import torch\nprint('here')\ntorch.set_num_threads({before + 1})\nX = int"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert registry().get("loud_gadget:X") is int
    out, err = capsys.readouterr()
    assert torch.get_num_threads() == before and out == ""
    assert err == "here\n'loud_gadget:X' changes the number of torch's threads when it is imported; put back\n"


def test_a_broken_file_in_the_package_hurts_only_itself(tmp_path, monkeypatch):
    package = tmp_path / "gadget_package"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "bad": "def x(:",
        "fine": "import gadget_things\ngadget_things.seen.append(1)",
    }.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "gadget_things.py").write_text("seen = []")
    monkeypatch.syspath_prepend(tmp_path)
    gadgets = Registry("gadget", package="gadget_package", group="none")
    assert (
        list(gadgets.broken) == ["bad"] and "'gadget_package.bad' fails to load: SyntaxError" in gadgets.broken["bad"]
    )
    import gadget_things

    assert gadget_things.seen == [1]


def test_broken_matrices_are_listed_and_stop_nobody(monkeypatch, tmp_path, capsys):
    (tmp_path / "broken_matrices.py").write_text("raise SystemExit('not today')")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [EntryPoint("mine", "broken_matrices", "harness.matrices")]
    monkeypatch.setattr("harness.measure.matrix.entry_points", lambda group: entries)
    assert load_matrix("quickstart").datasets
    print_catalog("matrices")
    assert (
        "broken: 'broken_matrices' is no importable package: SystemExit: not today  [plugin]" in capsys.readouterr().out
    )


MEDDLING = {
    "the number of torch's threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "the default dtype": lambda: torch.set_default_dtype(torch.float64),
    "the default device": lambda: torch.set_default_device("meta"),
    "whether gradients are recorded": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "whether algorithms are deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "the precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "whether denormal numbers are flushed": lambda: torch.set_flush_denormal(True),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "the settings of cuDNN": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "the settings of oneDNN": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "whether garbage is collected": gc.disable,
    "the filters of warnings": lambda: warnings.simplefilter("error"),
    "how signals are handled": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "environment variables": lambda: os.environ.update(OMP_NUM_THREADS="77"),
    "the working folder": lambda: os.chdir("/"),
    "the processors that it may use": lambda: os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]),
    "the seed of torch": lambda: torch.manual_seed(12345),
}


@pytest.mark.parametrize("setting", [*SETTINGS, "the seed of torch"])
def test_every_setting_is_put_back_and_named(setting, monkeypatch, tmp_path):
    if setting == "the processors that it may use" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one")
    monkeypatch.chdir(tmp_path)
    read = {name: get() for name, (get, _) in SETTINGS.items()}
    numbers = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), settings_kept() as changed:
        MEDDLING[setting]()
        1 / 0  # noqa: B018 - put back also where something is raised
    assert (setting in changed) != (
        setting == FILTERS
    )  # some bring others: torch imports what it needs for deterministic algorithms
    assert {name: get() for name, (get, _) in SETTINGS.items()} == read
    assert torch.equal(torch.get_rng_state(), numbers)


def test_drawing_numbers_is_no_change():
    with settings_kept() as changed:
        torch.rand(3)
    assert changed == []
