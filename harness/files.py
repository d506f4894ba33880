"""Files that are whole or not there at all, downloads too; names that stay inside the folder they are used in; TOML."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from safetensors import SafetensorError

from harness.errors import HarnessError, StoreError

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy

ROOT_VARIABLE = "HARNESS_DATA"
LONGEST_NAME = 100
LOCK = ".lock"
"""Of a folder that one process at a time writes to."""
_NAME = re.compile(r"\w[\w.+-]*")


def cache_folder() -> Path:
    """The user's cache folder: downloads, checkpoints, and what can be computed again."""
    return platformdirs.user_cache_path("nf-decoding-harness")


def data_root(given: Path | str | None = None) -> Path | None:
    """The folder of real images and checkpoints: the one given, else ``$HARNESS_DATA``, else None."""
    root = given or os.environ.get(ROOT_VARIABLE)
    return Path(root).expanduser() if root else None


def shown(path: Path) -> str:
    """A path as sentences that are stored name it: without the name of the user's folder.

    >>> shown(Path.home() / "checkpoints")
    '~/checkpoints'
    """
    return str(Path("~") / path.relative_to(Path.home())) if path.is_relative_to(Path.home()) else str(path)


def file_name(kind: str, name: str) -> str:
    """A name that users give to something which is written under it, when it names a file and nothing else.

    Letters, digits, ``_``, ``.``, ``+`` and ``-``, the first no punctuation, at most `LONGEST_NAME`; a `HarnessError`,
    which says what `kind` of thing is called so, for any other.

    >>> file_name("a matrix", "cifar10-jpeg_0.5")
    'cifar10-jpeg_0.5'
    """
    if _NAME.fullmatch(name) and len(name) <= LONGEST_NAME:
        return name
    raise HarnessError(
        f"{name[:LONGEST_NAME]!r} cannot name {kind}: files are called so; use letters, digits, dots and dashes, "
        f"at most {LONGEST_NAME}"
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; a `HarnessError` where it cannot be read as TOML."""
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HarnessError(f"'{path}' cannot be read as TOML: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text; a `ValueError` where it is none, or nested too deeply."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; what was written there takes the place of `path`, synced, at once and only if all went well.

    Each call writes to a path of its own, so that two processes may write the same file; the last one stays. The
    file's mode is what the umask gives: safetensors makes files that nobody else can read. Where it cannot be written,
    as on a full disk or in a read-only folder, there is a `StoreError`, and `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, and make its folder where there is none; a `StoreError` where it cannot be written."""
    make_folder(path.parent)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def fetch(url: str, target: Path, md5: str | None = None, timeout: float = 30.0) -> Path:
    """Download `url` to `target`; the file appears there only when it is whole and has the MD5 that is published.

    No network for `timeout` seconds, a full disk, or another file than the one published are a `HarnessError`, which
    says where to put the file by hand.
    """
    import urllib.request  # slow to import, and seldom needed

    make_folder(target.parent)
    try:
        with replacing(target) as partial:
            with urllib.request.urlopen(url, timeout=timeout) as response, partial.open("wb") as file:
                shutil.copyfileobj(response, file)
            with partial.open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if md5 is not None and found != md5:
                raise HarnessError(f"the file downloaded from {url} has MD5 {found}, expected {md5}; it was discarded")
    except StoreError as error:  # of the disk, or of the network: URLError is an OSError too
        reason = error.__cause__
        raise HarnessError(f"cannot download {url}: {reason}; fetch it otherwise and put it at '{target}'") from error
    return target


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there; a `StoreError` where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def require_writable(folder: Path) -> None:
    """Make a folder, and see that files can be written to it; a `StoreError` where they cannot.

    For what takes long to make: it is called before, so that nothing is made in vain.
    """
    make_folder(folder)
    tried = folder / f".{secrets.token_hex(4)}"
    with replacing(tried):
        pass
    tried.unlink(missing_ok=True)


def locked(folder: Path, doing: str) -> AcquireReturnProxy:
    """The lock of a folder, held by this process until its end or, as a context, that of the block.

    Raises:
        StoreError: another process holds it, which is `doing` the folder something; or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # slow to import

    try:
        return FileLock(folder / LOCK).acquire(blocking=False)
    except Timeout as error:
        raise StoreError(f"another process {doing} '{folder}'; wait for it or give another --out") from error
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(path: Path, error: OSError | SafetensorError) -> StoreError:
    """The error for a file or folder that the system refuses to write."""
    reason = error.strerror if isinstance(error, OSError) else None
    return StoreError(f"cannot write to '{path}': {reason or error}")


def _sync(path: Path) -> None:
    """Let what was written reach the disk; of a folder, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
