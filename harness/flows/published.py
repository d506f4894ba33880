"""Published checkpoints by name: what they are, how they were evaluated, and where they are to be had."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from harness.errors import CheckpointError
from harness.files import cache_folder, data_root, shown
from harness.flows.protocols import CausalFlow, Guidance

FOLDER = "checkpoints"
"""Where checkpoints lie in the data root and in the user's cache."""
SUFFIXES = (".safetensors", ".pth", ".pt")

_STEM = re.compile(r".+_model_.+_(?P<sigma>\d+\.\d+)")
"""``{dataset}_model_{patch}_{channels}_{blocks}_{layers}_{sigma}``."""


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Args:
        shape: patch-channels-blocks-layers.
        sigma: standard deviation of the noise in training, in image units.
        classes: 0 for an unconditional flow.
        guidance: that it was evaluated with, or None where that is not known.
        denoise: multiple of the denoising step that it was evaluated with, or None.
        sha256: of the file, or None where none is published.
    """

    name: str
    file: str
    dataset: str
    image_size: int
    shape: str
    sigma: float
    classes: int
    publisher: str
    url: str
    guidance: Guidance | None = None
    denoise: float | None = None
    sha256: str | None = None

    def doubts(self, flow: CausalFlow, sha256: str) -> str | None:
        """A sentence on why a file of this name need not be what was published, or None."""
        patch, _, blocks, _ = map(int, self.shape.split("-"))
        image = (3, self.image_size, self.image_size)
        found = (flow.num_layers, flow.num_tokens, flow.num_classes, flow.image_shape)
        if found != (blocks, (self.image_size // patch) ** 2, self.classes, image):
            return f"'{self.file}' is not of the shape that '{self.name}' was published with ({self.shape})"
        if self.sha256 is None:
            return (
                f"no digest of '{self.name}' is published, so that '{self.file}' is it, is not checked; its SHA-256 "
                f"is {sha256}"
            )
        return None if sha256 == self.sha256 else f"'{self.file}' is not the file that was published: its digest is not"


@cache
def published() -> dict[str, Published]:
    """The known checkpoints by name."""
    text = (Path(str(files("harness.flows"))) / "checkpoints.toml").read_text(encoding="utf-8")
    return {
        name: Published(name=name, **facts | {"guidance": Guidance(**guidance) if guidance else None})
        for name, facts in tomllib.loads(text).items()
        for guidance in [facts.get("guidance")]
    }


def published_as(path: Path | str) -> Published | None:
    """What a file is published as, by its name, whatever it was unwrapped or converted to; None for any other."""
    return next((known for known in published().values() if Path(known.file).stem == Path(path).stem), None)


def sigma_in_name(path: Path) -> float | None:
    """The training noise that the name of a published checkpoint ends with; None for other names.

    >>> sigma_in_name(Path("afhq_model_8_768_8_8_0.07.pth"))
    0.07
    """
    match = _STEM.fullmatch(path.stem)
    return float(match["sigma"]) if match else None


def find_checkpoint(name: str, root: Path | str | None = None) -> Path | None:
    """The file of a published checkpoint, by its name, or of one's own, by its stem, in the folders for them; or None.

    Args:
        name: of a published checkpoint, or the file's name without its suffix.
    """
    known = published().get(name)
    names = [known.file] if known else [f"{name}{suffix}" for suffix in SUFFIXES]
    paths = (folder / file for folder in folders(root) for file in names)
    return next((path for path in paths if path.is_file()), None)


def folders(root: Path | str | None = None) -> Iterator[Path]:
    """Where checkpoints are looked for: the data root, by default $HARNESS_DATA, and the user's cache."""
    if (data := data_root(root)) is not None:
        yield from (data, data / FOLDER)
    yield cache_folder() / FOLDER


def not_there(name: str, root: Path | str | None = None) -> CheckpointError:
    """The error for a published checkpoint that is in none of the folders."""
    known, (*_, last) = published()[name], folders(root)
    return CheckpointError(
        f"'{name}' ({known.file}, published by {known.publisher}) is not on this machine; get it from {known.url} and "
        f"put it at '{shown(last / known.file)}' or into the data root, or give its path"
    )
