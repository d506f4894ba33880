"""Fetching one file: checked, complete or not there at all."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.request
from pathlib import Path

from harness.errors import HarnessError


def fetch(url: str, target: Path, md5: str | None = None, timeout: float = 30.0) -> Path:
    """Download `url` to `target`; the file appears there only when it is whole and its checksum is right.

    Args:
        url: what to fetch.
        target: where to; its folder is made.
        md5: the publisher's checksum in hexadecimal, or None where none is published.
        timeout: seconds without an answer.

    Raises:
        HarnessError: no network, a full disk, or a file that is not the one published; the sentence says where to put
            the file by hand.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            part = Path(folder) / target.name
            with urllib.request.urlopen(url, timeout=timeout) as response, part.open("wb") as file:
                shutil.copyfileobj(response, file)
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if md5 is not None and found != md5:
                raise HarnessError(f"the file downloaded from {url} has MD5 {found}, expected {md5}; it was discarded")
            return part.replace(target)
    except OSError as error:  # URLError is one
        raise HarnessError(f"cannot download {url}: {error}; fetch it otherwise and put it at '{target}'") from error
