"""What is trained, on what, and for how long: one TOML file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError

from harness.errors import HarnessError, unknown
from harness.files import file_name, read_toml
from harness.flows.checkpoints import ASSETS
from harness.training.course import MAY_CHANGE, Count, Course
from harness.training.maf_config import MafConfig

Rate = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class TrainingConfig(Course):
    """A training run; the defaults are those of TarFlow (arXiv 2412.06329) where it states one.

    Raises:
        ValidationError: an unknown key, or a value out of range.
    """

    may_change: ClassVar[tuple[str, ...]] = (*MAY_CHANGE, "workers")
    family: ClassVar[str] = "tarflow"

    # What is learned.
    dataset: str
    size: Count | None = None
    """Side of the square images; None for the dataset's own."""
    conditional: bool = True
    """Learn the classes, where there are two or more."""
    flip: bool = False
    """Mirror every other training image: only where a mirrored image is as likely."""
    jitter: Annotated[float, Field(ge=0)] = 0.0
    """Random affine distortions of the training images, see `data.distort`; 0 for none."""
    noise: Literal["gaussian", "uniform"] = "gaussian"
    sigma: Annotated[float, Field(gt=0)] = 0.05
    """Standard deviation of the Gaussian noise, or half the width of the uniform one, in image units ([-1, 1])."""

    # The flow; published names read patch-channels-blocks-layers.
    patch: Count
    channels: Count
    blocks: Count
    layers: Count
    volume_preserving: bool = False

    # How it is learned and run, beside what every training has.
    label_drop: Rate = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the network's products: auto is bfloat16 on a CUDA device that has it, float32 elsewhere."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches beside the loop."""
    snapshots: tuple[Fraction, ...] = ()
    """Fractions of the training after which the averaged weights are kept."""

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """The steps after which the snapshots are taken."""
        return tuple(math.ceil(fraction * self.steps) for fraction in self.snapshots)

    @property
    def shape(self) -> str:
        """As in the names of published checkpoints."""
        return f"{self.patch}-{self.channels}-{self.blocks}-{self.layers}"


FAMILIES: dict[str, type[TrainingConfig] | type[MafConfig]] = {"tarflow": TrainingConfig, "maf": MafConfig}
"""Configurations by the key `family`; without one it is a TarFlow."""


def shipped_configs() -> list[str]:
    """Names of the configurations shipped with the package, those that made its flows."""
    return sorted(path.stem for path in ASSETS.glob("*.toml"))


def read_config(name_or_path: str, **overrides: object) -> tuple[str, TrainingConfig | MafConfig]:
    """The name and the configuration of a shipped training, or of a TOML file.

    Args:
        name_or_path: such as ``"digits"`` or ``"mine.toml"``.
        overrides: keys to replace; None leaves the file's value.

    Raises:
        HarnessError: no such configuration, no TOML, an unknown key, or a value out of range.
    """
    path = ASSETS / f"{name_or_path}.toml" if name_or_path in shipped_configs() else Path(name_or_path).expanduser()
    if not path.is_file():
        if path.suffix == ".toml":
            raise HarnessError(f"there is no training configuration at '{path}'")
        raise HarnessError(
            f"{unknown('training configuration', name_or_path, shipped_configs())}; or give the path of a TOML file"
        )
    values = read_toml(path) | {key: value for key, value in overrides.items() if value is not None}
    family = values.pop("family", TrainingConfig.family)
    if not isinstance(family, str) or family not in FAMILIES:
        raise HarnessError(f"'{path}': {unknown('family', str(family), FAMILIES)}")
    config = FAMILIES[family]
    if extra := sorted(set(values) - set(config.model_fields)):
        raise HarnessError(f"'{path}': {unknown('key', extra[0], config.model_fields)}")
    try:
        return file_name("a training", path.stem), config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        got = f", not {first['input']!r}" if key and first["type"] != "missing" else ""
        raise HarnessError(f"'{path}': {f'{key}: ' if key else ''}{said[:1].lower()}{said[1:]}{got}") from error


def command_line(name_or_path: str, **overrides: object) -> str:
    """The command of a training as a model card states it: without the folders of the machine it ran on.

    >>> command_line("somewhere/mine.toml", steps=100, seed=None)
    'harness train mine.toml --steps 100'
    """
    options = [f" --{key} {value}" for key, value in overrides.items() if value is not None]
    return f"harness train {Path(name_or_path).name}{''.join(options)}"
