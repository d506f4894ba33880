"""The commands that README.md shows are commands, with options that they have; its Python is run with all documents."""

import re
import shlex
from pathlib import Path

import click
import pytest

from harness.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    command.split("#")[0].strip()
    for kind, text in BLOCKS
    if kind != "python"
    for line in text.splitlines()
    for command in line.split(", harness ")
    if line.startswith("harness ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_with_options_that_it_has(command):
    words = [word for word in shlex.split(command) if word != "harness"]
    group, name = app, words.pop(0)
    while isinstance(group, click.Group):
        found = group.get_command(click.Context(group), name)
        assert found is not None, command
        group, name = found, words[0] if words else ""
    known = {option for parameter in group.params for option in parameter.opts}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, command
