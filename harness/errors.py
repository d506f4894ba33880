"""Errors that a user can act on.

A `HarnessError` is one sentence that says what was wrong, where, and what would be right. The command line prints
it on stderr and exits with code 2; nothing else is ever shown without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """Bad input; the message is a sentence for the user."""


class CheckpointError(HarnessError):
    """A checkpoint that is missing, unreadable, or not the layout it claims to be."""


class DatasetError(HarnessError):
    """Real images that are missing, unreadable, or cut short."""


class StoreError(HarnessError):
    """A run folder that cannot be read or written, or any file that cannot be written."""


class NonFiniteError(HarnessError):
    """Samples that are NaN or infinite: a failed row of a run; drawn by a command they are in no file, exit code 1."""


def because(error: BaseException) -> str:
    """Why something failed that costs its own value alone, in one line: a sentence of ours as it is."""
    said = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:500]


def unknown(kind: str, name: str, known: Iterable[str]) -> HarnessError:
    """The error for a name that is not registered, with the nearest known name.

    >>> str(unknown("decoder", "sejdd", ["sejd", "ujd"]))
    "unknown decoder 'sejdd'; did you mean 'sejd'? Known: sejd, ujd"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return HarnessError(f"unknown {kind} '{name}'{hint} Known: {', '.join(known)}")
