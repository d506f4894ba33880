"""Where a measurement runs: in this process, or in a fresh one of its own."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from harness.errors import HarnessError

T = TypeVar("T")


class ProcessDied(HarnessError):
    """A process ended without an answer, as when the system killed it for its memory."""


class Executor(Protocol):
    """Runs one job and waits for it."""

    def run(self, job: Callable[..., T], *arguments: Any) -> T:
        """What `job(*arguments)` returns; what it raises is raised here."""
        ...


class InProcess:
    """Jobs run where they are asked for."""

    def run(self, job: Callable[..., T], *arguments: Any) -> T:
        """See `Executor.run`."""
        return job(*arguments)


class FreshProcess:
    """Every job runs in a process of its own, in which nothing ran before.

    A server process imports the modules named and forks each job from itself, so that a job starts in milliseconds
    and with nothing in memory but code. Where the system cannot fork from a server, jobs are spawned.

    Args:
        preload: modules whose import takes time.
    """

    def __init__(self, *preload: str) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if preload and "forkserver" in methods:
            self._context.set_forkserver_preload(list(preload))

    def run(self, job: Callable[..., T], *arguments: Any) -> T:
        """See `Executor.run`; job and arguments must be picklable.

        Raises:
            ProcessDied: the process ended without an answer.
        """
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_answer, args=(theirs, job, arguments), daemon=True)  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        try:
            ok, value = ours.recv()  # blocks until an answer or the end of the process
        except EOFError:
            process.join()
            raise ProcessDied(_death(process.exitcode)) from None
        finally:
            ours.close()
            process.join()
        if not ok:
            raise value
        return value


def _answer(pipe: multiprocessing.connection.Connection, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        answer = (True, job(*arguments))
    except Exception as error:
        answer = (False, error)
    try:
        pipe.send(answer)
    except (TypeError, AttributeError, ValueError):  # an exception or a value that cannot be pickled
        pipe.send((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        reason = ", as it is when memory runs out" if name == "SIGKILL" else ""
        return f"the measuring process was ended by {name}{reason}"
    return f"the measuring process ended with code {code} and no answer"
