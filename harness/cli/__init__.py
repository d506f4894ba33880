"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

from harness.cli import fit, measure, results  # noqa: F401 - importing them defines the commands
from harness.cli.app import app, main

__all__ = ["app", "main"]
