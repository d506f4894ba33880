"""What every fuzz target shares: mutation, and a guard that turns what must not happen into a failure.

The guard watches the process from inside: a write outside the folder it was given, a program started, a connection
made, memory or time exceeded. An input is written to a file before it is fed, so that a crash of the interpreter
leaves it behind.
"""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HANG_S = 20
"""Of processor time, so that a busy machine is no hang; one that waits for ever is ended by `fuzz_run`."""
MEMORY_BYTES = 8 << 30
"""Of address space: torch maps some gigabytes of it before anything is read."""

TOKENS = [
    b"../../escape", b"/etc/passwd", b"..", b"\0", b"\xff\xfe", b"nan", b"inf", b"-1", b"0", b"1e400", b"true", b'""',
    b"9" * 30, b"[" * 3000, b"{" * 3000, b"\xe2\x80\xae", b"a" * 5000, b"18446744073709551615", b"-9223372036854775808",
    b"[]", b"{}", b"'''", b"null", b"os:system", b"../x:Y", b"\r\n", b"1979-05-27", b"[[[1]]]", b'"..."', b"0x_",
]  # fmt: skip
INTEGERS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 10**12]


class Violation(BaseException):
    """Something that no input may cause; no handler of the code under test catches it."""


@dataclass(frozen=True)
class Target:
    """Something that reads bytes from outside.

    Args:
        name: of the target.
        seeds: sound inputs; the first is fed as it is and must be accepted.
        feed: takes an input and an empty folder; a `HarnessError` is how it refuses.
        mutate: makes a new input from the seeds.
    """

    name: str
    seeds: list[bytes]
    feed: Callable[[bytes, Path], None]
    mutate: Callable[[list[bytes], random.Random], bytes]


def mutate_bytes(seeds: list[bytes], rng: random.Random) -> bytes:
    """One to four changes anywhere."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        width = min(len(data) - place, rng.choice([1, 2, 8, 64, 1024]))
        match rng.randrange(7):
            case 0 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place:]
            case 2:
                del data[place : place + width]
            case 3:
                data[place:place] = data[place : place + width] * rng.choice([1, 2, 50])
            case 4:
                data[place:place] = rng.choice(TOKENS)
            case 5:
                data[place : place + 8] = rng.choice(INTEGERS).to_bytes(8, rng.choice(["little", "big"]))
            case 6:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[place : place + width] = other[start : start + width]
    return bytes(data)


VALUE = re.compile(rb"(?<=[=:\[,])[^=:\[\],\n{}]+")


def mutate_text(seeds: list[bytes], rng: random.Random) -> bytes:
    """Changes of values, keys and lines; now and then of bytes."""
    data = rng.choice(seeds)
    for _ in range(rng.randint(1, 4)):
        lines = data.split(b"\n")
        place = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0 | 1 if values := list(VALUE.finditer(data)):
                found = rng.choice(values)
                quoted = rng.choice([b" %s", b' "%s"', b" [%s]", b" {a = %s}"]) % rng.choice(TOKENS)
                other = rng.choice(values).group()
                data = data[: found.start()] + rng.choice([quoted, other]) + data[found.end() :]
            case 2:
                data = b"\n".join(lines[:place] + lines[place + 1 :])
            case 3:
                data = b"\n".join([*lines[:place], rng.choice(lines), *lines[place:]])
            case 4:
                data = b"\n".join([*lines[:place], rng.choice(TOKENS) + b" = 1", *lines[place:]])
            case _:
                data = mutate_bytes([data], rng)
    return data


class Guard:
    """Watches one process for as long as it lives.

    Args:
        folder: the only place that may be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.armed = str(folder.resolve()), False
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, self._hang)
        sys.addaudithook(self._audit)

    def run(self, target: Target, data: bytes, folder: Path) -> str | None:
        """Feed an input; what went wrong, as a traceback, or None."""
        from harness.errors import HarnessError

        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        self.armed = True
        try:
            target.feed(data, folder)
        except HarnessError as error:
            self.armed = False
            return None if str(error).strip() else "a HarnessError without a sentence"
        except BaseException:
            self.armed = False
            return traceback.format_exc()
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        return None

    def _hang(self, *_: object) -> None:
        raise Violation(f"no end after {HANG_S} s")

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        if event == "subprocess.Popen" and arguments[0] == "git":  # asks for commits, and for nothing else
            return
        if event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"):
            raise Violation(f"{event}{arguments}")
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not (set("wax+") & set(mode or "") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)):
                return
            self._inside(path)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.rename", "os.symlink", "os.link"):
            self._inside(arguments[1 if event in ("os.rename", "os.symlink", "os.link") else 0])

    def _inside(self, path: str | bytes | os.PathLike) -> None:
        place = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
        if not (place + "/").startswith(self.folder + "/") and not place.startswith("/dev"):
            raise Violation(f"wrote to {path!r}")


def loop(target: Target, folder: Path, guard: Guard, seed: int, seconds: float, most: int) -> tuple[int, str | None]:
    """Feed mutants until the time or their number is up: how many were fed, and the first failure."""
    end, count = time.monotonic() + seconds, 0
    target.feed(target.seeds[0], emptied(folder / "work"))  # sound; what it imports on the way is nobody's input
    failure = None
    while failure is None and count < most and time.monotonic() < end:
        data = target.mutate(target.seeds, random.Random(f"{target.name} {seed} {count}"))
        (folder / f"{target.name}.input").write_bytes(data)
        failure = guard.run(target, data, emptied(folder / "work"))
        count += 1
    if failure:
        failure = f"target {target.name}, seed {seed}, input {count}: {folder / f'{target.name}.input'}\n{failure}"
    return count, failure


def replay(target: Target, folder: Path, guard: Guard, data: bytes) -> str | None:
    """Feed one input again; what went wrong, or None."""
    target.feed(target.seeds[0], emptied(folder / "work"))
    return guard.run(target, data, emptied(folder / "work"))


def emptied(folder: Path) -> Path:
    """The folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
