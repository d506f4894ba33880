"""The registry that finds decoders, flows and datasets."""

import pytest

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


def test_two_things_of_one_name_are_refused():
    gadgets = registry()
    gadgets.register("a")(Registry)
    gadgets.register("a")(Registry)  # the same thing again, as when a module is reloaded
    with pytest.raises(HarnessError, match="two gadgets are called 'a'"):
        gadgets.register("a")(HarnessError)
