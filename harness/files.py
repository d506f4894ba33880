"""Files that are whole or not there at all, downloads too; names that stay inside their folder; what a file is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from safetensors import SafetensorError, safe_open

from harness.errors import HarnessError, StoreError

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy

ROOT_VARIABLE = "HARNESS_DATA"
LONGEST_NAME = 100
LOCK = ".lock"
"""Of a folder that one process at a time writes to."""
_NAME = re.compile(r"\w[\w.+-]*")
SAFETENSORS, TORCH, TEXT = "a safetensors file", "a file of torch.save", "text"
_BEGIN = {
    b"<!doctype html": "a web page (HTML), such as one that asks for a login",
    b"<html": "a web page (HTML), such as one that asks for a login",
    b"version https://git-lfs": "a Git LFS pointer, which `git lfs pull` replaces by the file itself",
    b"\x93numpy": "a NumPy array (.npy)",
    b"\x1f\x8b": "a gzip file",
    b"bzh": "a bzip2 file",
    b"\xfd7zxz": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\x89png": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89hdf": "an HDF5 file",
    b"par1": "a Parquet file",
    b"%pdf": "a PDF document",
    b"\x80\x02\x8a\nl\xfc\x9cf\xf9": TORCH,
}
"""What files begin with, in lower case."""


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

    >>> file_name("a matrix", "cifar10_0.5")
    'cifar10_0.5'
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
    except OSError as error:
        raise HarnessError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        reason = f"{error}" if (kind := kind_of(path)) == TEXT else f"it is {kind}"
        raise HarnessError(f"'{path}' cannot be read as TOML: {reason}") from error


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
    try:
        tried.write_bytes(b"\0")  # which a full disk refuses
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
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


def kind_of(path: Path) -> str:
    """What a file is by how it begins, with its article: for sentences on a file that is not what it should be."""
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "an empty file"
    begin = head.lstrip().lower()
    if found := next((kind for known, kind in _BEGIN.items() if begin.startswith(known)), None):
        return found
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head[8:9] == b"{" and not head[7]:
        return SAFETENSORS
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[:1] == b"\x80" and head[1:2] < b"\x06":
        return "a pickle"
    try:
        text = head.decode(errors="strict" if len(head) < 1024 else "ignore")
    except UnicodeDecodeError:
        return "data of no known kind"
    return TEXT if "\0" not in text and len(text) > len(head) / 2 else "data of no known kind"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a zip archive that is damaged or cut short"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive"
    if any(name.endswith("/data.pkl") for name in names):
        return TORCH
    return "a NumPy archive (.npz)" if any(name.endswith(".npy") for name in names) else "a zip archive"


def not_as(path: Path, kind: str) -> str:
    """Why a file cannot be read as one of this kind: what it is instead, or that it is damaged."""
    found = kind_of(path)
    return "it is damaged or cut short" if found == kind else f"it is {found}, not {kind}"


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors, memory-mapped on the CPU, and metadata of a safetensors file; a `ValueError` that says why not."""
    try:
        with path.open("rb"):  # for the system's own reason: the library has one of its own
            pass
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # the library's own, and torch's for numbers that it does not know
        raise ValueError(not_as(path, SAFETENSORS)) from error


def in_order(file: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in an order of its own each time, and a
    checkpoint is known by its digest.
    """
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + size :]


def _sync(path: Path) -> None:
    """Let what was written reach the disk; of a folder, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
