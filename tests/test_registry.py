"""The registry that finds decoders, flows and datasets."""

from importlib.metadata import EntryPoint

import pytest

from harness import registry as registry_module
from harness.cli.catalog import print_catalog
from harness.decoders import decoders
from harness.errors import HarnessError
from harness.registry import Registry, first_line


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
