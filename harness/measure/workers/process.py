"""A process of its own for what is measured, and a conversation with it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from harness.errors import HarnessError

T = TypeVar("T")

SERVER_GOES_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Pauses between tries to start a process while a server that was killed goes."""
ENDS_S = 15.0
"""Seconds that a process may take to end once it is asked nothing more."""


class ProcessDied(HarnessError):
    """A process ended without an answer, as when the system killed it for its memory."""


class FreshProcess:
    """Every job runs in a process of its own, in which nothing ran before.

    A server process imports the modules named and forks each job from itself, so that a job starts in milliseconds and
    with nothing in memory but code. With an `environment`, and where the system cannot fork from a server, jobs are
    spawned: a new interpreter that has imported nothing, in which the environment is set before anything else is done.

    A process ends with the one that started it, however that ends.

    Args:
        preload: modules whose import takes time.
        environment: variables of every process, set before anything is imported.
    """

    def __init__(self, *preload: str, environment: Mapping[str, str] | None = None) -> None:
        serves = environment is None and "forkserver" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if serves else "spawn")
        if serves and preload:
            self._context.set_forkserver_preload(list(preload))
        self._environment = dict(environment or {})

    def prepare(self) -> None:
        if self._context.get_start_method() == "forkserver":
            from multiprocessing import forkserver

            forkserver.ensure_running()

    def run(self, job: Callable[..., T], *arguments: Any) -> T:
        """What `job(*arguments)` returns; what it raises is raised here. All must be picklable.

        Raises ProcessDied: the process ended without an answer.
        """
        with self.open(_same, job) as process:
            return process.ask(*arguments)

    def open(self, make: Callable[..., Callable[..., Any]], *arguments: Any) -> Conversation:
        ours, theirs = self._context.Pipe()
        payload = pickle.dumps((make, arguments))  # unpickled, and so imported, when the environment is set
        process = self._context.Process(target=_serve, args=(theirs, self._environment, payload))  # type: ignore[attr-defined]
        try:
            _start(process)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Conversation(process, ours)


class Conversation:
    """A process that answers one question at a time; a context manager."""

    def __init__(self, process: Any, pipe: multiprocessing.connection.Connection) -> None:
        self._process, self._pipe = process, pipe

    def ask(self, *question: Any) -> Any:
        """Send the arguments, block until the answer comes, and return it; what was raised there is raised here.

        Raises ProcessDied: the process ended without an answer.
        """
        try:
            self._pipe.send(question)
            ok, value = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._end()
            raise ProcessDied(_death(self._process.exitcode)) from error
        if not ok:
            raise value
        return value

    def close(self, now: bool = False) -> None:
        """Let the process end; with `now`, in the middle of whatever it does."""
        if now:
            self._process.kill()
        self._pipe.close()
        self._end()

    def _end(self) -> None:
        """Wait for the end of the process, but not for ever: foreign code may have left a thread in it."""
        self._process.join(ENDS_S)
        if self._process.is_alive():
            print(
                f"a measuring process had not ended after {ENDS_S:g} s, as where a decoder leaves a thread or "
                "a process running; it was ended",
                file=sys.stderr,
            )
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(now=kind is not None)


def _start(process: Any) -> None:
    """Start a process, by a new server where the one there was has been ended."""
    for pause in SERVER_GOES_S:
        try:
            with _main_left_alone():
                return process.start()
        except (EOFError, ConnectionError, FileNotFoundError) as error:
            lost = error
            time.sleep(pause)
        except OSError as error:
            if "path too long" not in str(error):
                raise
            raise HarnessError(
                f"the path of the folder for temporary files, '{tempfile.gettempdir()}', is too long for a socket in "
                "it; set TMPDIR to a shorter one"
            ) from error
    raise ProcessDied("the process that starts measuring processes was ended") from lost


_MAIN = threading.Lock()
"""Held while a process starts that is not to see the main module."""


@contextmanager
def _main_left_alone() -> Iterator[None]:
    """Keep a script that has no ``if __name__ == "__main__":`` from being run again in every process that it starts.

    One that has it is imported there, as multiprocessing does it, so that what it registers is known.
    """
    main = sys.modules["__main__"]
    script = Path(getattr(main, "__file__", None) or "")
    if getattr(main, "__spec__", None) or not script.is_file() or "__name__" in script.read_text(errors="replace"):
        yield
        return
    with _MAIN:
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _same(job: Callable[..., T]) -> Callable[..., T]:
    return job


def _serve(pipe: multiprocessing.connection.Connection, environment: dict[str, str], payload: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    answer: Callable[..., Any] | None = None
    while True:
        try:
            question = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            if answer is None:
                make, arguments = pickle.loads(payload)
                answer = make(*arguments)
            reply = (True, answer(*question))
        except Exception as error:
            reply = (False, error)
        _reply(pipe, reply)


def _reply(pipe: multiprocessing.connection.Connection, reply: tuple[bool, Any]) -> None:
    try:
        pickle.loads(pickle.dumps(reply[1])) if not reply[0] else None  # some exceptions cannot be made again
        pipe.send(reply)
    except BrokenPipeError:
        sys.exit()
    except Exception:
        pipe.send((False, RuntimeError(f"{type(reply[1]).__name__}: {reply[1]}")))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # blocks
        os._exit(1)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        reason = ", as it is when memory runs out" if name == "SIGKILL" else ""
        return f"the measuring process was ended by {name}{reason}"
    return f"the measuring process ended with code {code} and no answer"
