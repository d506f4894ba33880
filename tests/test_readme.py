"""What README.md shows runs: its Python as it stands, its commands as far as they are understood."""

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


def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    assert len(code.splitlines()) <= 14
    found: dict = {}
    exec(code, found)
    assert found["drawn"].images.shape == (16, 1, 8, 8) and "faster than sequential" in repr(found["best"])


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
