"""Fetching one file: checked, complete or not there at all."""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from pathlib import Path

from harness.errors import HarnessError, StoreError
from harness.files import make_folder, replacing


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
