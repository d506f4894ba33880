"""The command `harness`: its entry point, exit codes, and the options that several commands share."""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
import threading
import time
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import click

from harness import __version__
from harness.errors import HarnessError


class Value(click.ParamType):
    """A number or several, read as every other option is: `kind` names its type in `harness.options`."""

    def __init__(self, kind: str) -> None:
        self.kind, self.name = kind, kind.lower()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from harness import options  # slow to import

        if not isinstance(value, str):
            return value
        assert param is not None
        return options.read_value(max(param.opts, key=len), getattr(options, self.kind), value)


class Command(click.Command):
    """A command that refuses an option given twice, where only one of them would count, and says what an end leaves."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        *_, order = self.make_parser(ctx).parse_args(args=list(args))
        for param, count in Counter(order).items():
            if isinstance(param, click.Option) and count > 1 and not param.multiple and not param.is_flag:
                raise click.UsageError(f"{max(param.opts, key=len)} is given {count} times")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            resumes = any(param.name == "resume" for param in self.params)
            left = "what is stored stays, and --resume continues" if resumes else "what was not finished is not kept"
            raise click.Abort(f"interrupted; {left}") from error


class Group(click.Group):
    """Of such commands."""

    command_class = Command


data_root = click.option(
    "--data-root",
    "root",
    type=click.Path(path_type=Path),
    help="Where the real images lie; by default $HARNESS_DATA.",
)
threads = click.option("--threads", type=Value("Processes"), help="CPU threads; by default torch's own choice.")
dry_run = click.option(
    "--dry-run", is_flag=True, help="Only say what would be done, about how long it takes, and what is missing for it."
)
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
weights = click.option("--weights", metavar="KEY", help="Which weights of a checkpoint with several, as ema.")
dataset = click.option(
    "--dataset", help="Real images that a checkpoint was trained on, for FID; by default what it says of itself."
)


class Budget(Value):
    """A deviation allowed, or ``"sejd"``, which is None."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        return None if value in (None, "sejd") else super().convert(value, param, ctx)


FOLDER = click.Path(path_type=Path, file_okay=False)
ENDS_S = 15.0
"""Seconds that threads which foreign code left, or what it has the interpreter do at its end, may hold this process."""


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="harness")
def app() -> None:
    """Measure how autoregressive normalizing flows are sampled: how fast, at what quality, at what memory, and why."""


def main() -> NoReturn:
    """Entry point: exit 0 when done, 1 when a comparison or check failed, 2 on bad input with one line on stderr.

    A command returns its exit code, or None for 0.
    """
    if logging.lastResort is not None:  # what the library notes goes to stderr, whatever else listens to it
        logging.getLogger("harness").addHandler(logging.lastResort)
    sys.path.append(os.getcwd())  # so that package.module:Class is found where the user stands, as with python -m
    _tolerate_narrow_encodings()
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
    except (KeyboardInterrupt, click.Abort) as stopped:
        print(str(stopped) or "interrupted", file=sys.stderr)
        code = 130
    if all(one.name != _end.__name__ for one in threading.enumerate()):  # once in a process that calls this again
        threading.Thread(target=_end, args=(code,), name=_end.__name__, daemon=True).start()
    sys.exit(code)


def _end(code: int) -> None:
    time.sleep(ENDS_S)
    if not threading.main_thread().is_alive():  # it has left, and waits for others
        left = [one.name for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
        print(
            f"the process did not end within {ENDS_S:g} s and was ended; still running: {', '.join(left)}",
            file=sys.stderr,
        )
        sys.stdout.flush()  # which an end like this does not do
        os._exit(code)


def _fail(sentence: str) -> int:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


_ASCII = {
    "±": "+-",
    "×": "x",
    "–": "-",
    "−": "-",
    "…": "...",
    "→": "->",
    "τ": "tau",
    "∝": "~",
    "·": "*",
    "⏱": "(timed)",
}


def _tolerate_narrow_encodings() -> None:
    """Let no character end a command that its terminal, pipe or locale cannot show: one like it takes its place."""

    def replaced(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        lost = error.object[error.start : error.end]
        plain = (
            _ASCII.get(one) or unicodedata.normalize("NFKD", one).encode("ascii", "ignore").decode() for one in lost
        )
        return "".join(one or "?" for one in plain), error.end

    codecs.register_error("harness", replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="harness")
