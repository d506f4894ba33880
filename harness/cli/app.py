"""The command `harness`: its entry point, exit codes, and the options that several commands share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from harness import __version__
from harness.errors import HarnessError

data_root = click.option(
    "--data-root",
    "root",
    type=click.Path(path_type=Path),
    help="Where the real images lie; by default $HARNESS_DATA.",
)
threads = click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default torch's own choice.")
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="harness")
def app() -> None:
    """Measure how autoregressive normalizing flows are sampled: how fast, at what quality, at what memory, and why."""


def main() -> NoReturn:
    """Entry point: exit 0 when done, 1 when a comparison or check failed, 2 on bad input with one line on stderr.

    A command returns its exit code, or None for 0.
    """
    sys.path.append(os.getcwd())  # so that package.module:Class is found where the user stands, as with python -m
    try:
        code = app(prog_name="harness", standalone_mode=False) or 0
    except HarnessError as error:
        code = _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        code = 2
    except click.ClickException as error:
        code = _fail(error.format_message())
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # of a path that the user named: too long, on a full disk, of somebody else
        code = _fail(f"{error.strerror or error}{f': {error.filename!r}' if error.filename else ''}")
    except (KeyboardInterrupt, click.Abort):
        print("interrupted; what was measured is stored, and --resume continues", file=sys.stderr)
        code = 130
    sys.exit(code)


def _fail(sentence: str) -> int:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2
