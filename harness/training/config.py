"""What is trained, on what, and for how long: one TOML file."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from harness.errors import HarnessError, unknown
from harness.files import file_name, read_toml
from harness.flows.checkpoints import ASSETS
from harness.options import Real, Seed, several

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

SPREAD = 4
"""Samples from which the variance of a number is told, at the least."""

MAY_CHANGE = {"remark", "threads", "workers", "evaluate_every", "checkpoint_every", "held_out"}
"""Keys that a resumed run may have otherwise than the run it continues: they do not change what is learned."""


class TrainingConfig(BaseModel):
    """How any flow is trained: how long, how fast, and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: Count
    batch_size: Count
    learning_rate: Annotated[Real, Field(gt=0)] = 1e-4
    warmup: Count = 100
    """Steps in which the learning rate rises to `learning_rate`."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the other steps, the last ones, in which it falls to 0 along a cosine. With less than 1, `steps` can
    still be changed by a resume while the rate is constant."""
    weight_decay: Annotated[Real, Field(ge=0)] = 1e-4
    grad_clip: Annotated[Real, Field(gt=0)] = 1.0
    ema: Rate = 0.999
    """Decay of the averaged weights, which are those that are kept; smaller in the first steps."""
    seed: Seed = 0

    noise: Literal["gaussian", "uniform"] = "gaussian"
    """What is added to data, of its own draw in every step."""
    sigma: Annotated[Real, Field(gt=0)] = 0.05
    """Standard deviation of the Gaussian noise, or half the width of the uniform one, in image units ([-1, 1])."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the network's products: auto is bfloat16 on a CUDA device that has it, float32 elsewhere."""
    threads: Count | None = None
    """Threads on the CPU. The weights depend on it in the last bits, so shipped configurations fix it."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches beside the loop."""
    evaluate_every: Count = 500
    checkpoint_every: Count = 250
    held_out: Count | None = None
    """Images of the test split that bits per dimension are measured on; None for all of them."""
    snapshots: tuple[Fraction, ...] = ()
    """Fractions of the training after which the averaged weights are kept."""
    storage: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the released weights; `load_flow` casts them to the dtype asked for."""
    remark: str = ""
    """What a person saw in the samples of this very run; goes into the model card."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.warmup > self.steps:
            raise ValueError(f"warmup ({self.warmup}) is longer than the training ({self.steps} steps)")
        if len(set(map(percent, self.snapshots))) < len(self.snapshots):
            raise ValueError(f"snapshots ({', '.join(map(str, self.snapshots))}) of one name would replace each other")
        return self

    def learning_rate_at(self, step: int) -> float:
        """Of a step counted from 0: linear warm-up, a constant stretch if any, then a cosine that ends at 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        falling = max(1.0, self.decay * (self.steps - self.warmup))
        progress = max(0.0, 1 - (self.steps - step) / falling)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        return tuple(math.ceil(fraction * self.steps) for fraction in self.snapshots)

    def _plan(self, done: int) -> list[float]:
        snapshots = [step for step in self.snapshot_steps if step <= done]
        return [*map(self.learning_rate_at, range(done)), *snapshots]

    def difference(self, other: TrainingConfig, done: int) -> str | None:
        """The first key by which the first `done` steps of another training differ from those of this one, if any."""
        free = MAY_CHANGE | ({"steps"} if self._plan(done) == other._plan(done) else set())
        mine, theirs = self.model_dump(exclude=free), other.model_dump(exclude=free)
        return next((key for key in mine if mine[key] != theirs.get(key)), None)


def percent(fraction: float) -> str:
    """How the released files of a snapshot call the fraction of the training after which it was kept.

    >>> percent(0.125)
    '12.5pct'
    """
    return f"{100 * fraction:g}pct"


class ImageTraining(TrainingConfig):
    """A model of images, and of their classes where there are any."""

    dataset: str
    size: Count | None = None
    """Side of the square images; None for the dataset's own."""
    conditional: bool = True
    """Learn the classes, where there are two or more."""
    flip: bool = False
    """Mirror every other training image: only where a mirrored image is as likely."""
    jitter: Annotated[Real, Field(ge=0)] = 0.0
    """Random affine distortions of the training images, see `data.distort`; 0 for none."""
    label_drop: Rate = 0.1


class TarFlowTraining(ImageTraining):
    """A TarFlow of images; the defaults are those of arXiv 2412.06329 where it states one."""

    # The flow; published names read patch-channels-blocks-layers.
    patch: Count
    channels: Count
    blocks: Count
    layers: Annotated[tuple[Count, ...], Field(min_length=1), BeforeValidator(several)]
    """Transformer layers of a block, from the data side; the last number holds for all blocks after it."""
    turn_every: Count = 1
    """Blocks after which the order of the tokens turns: 1, as published, for raster, reverse, raster, ..."""
    volume_preserving: bool = False

    # Training for fast decoding, see `harness.training.inversion`; none of it by default.
    decode_weight: Annotated[Real, Field(ge=0)] = 0.0
    """What the error that a few Jacobi iterations leave is multiplied by before it is added to the nats per number."""
    decode_iterations: Annotated[int, Field(ge=1, le=2)] = 1
    drop_nearest: Annotated[int, Field(ge=0)] = 0
    """Predecessors that attention does not see in half of every batch."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.layers) > self.blocks:
            raise ValueError(f"layers are given for {len(self.layers)} blocks of {self.blocks}")
        least = 2 * SPREAD if self.drop_nearest else SPREAD
        if self.decode_weight and self.batch_size < least:
            raise ValueError(f"decode_weight needs a batch_size of {least} or more, to tell how far numbers spread")
        return self

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer layers of every block."""
        return (*self.layers, *[self.layers[-1]] * (self.blocks - len(self.layers)))


class DiscreteTraining(ImageTraining):
    """A model of pixels as discrete tokens, see `harness.flows.discrete`; nothing is added to its data."""

    family: Literal["discrete"] = "discrete"
    channels: Count
    layers: Count


class IsingTable(BaseModel):
    """The model whose Boltzmann distribution is learned by reverse KL, see `harness.flows.ising`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: Annotated[int, Field(ge=3, le=10)]
    """Of the periodic square lattice."""
    temperature: Annotated[Real, Field(gt=0)]
    """In units of the coupling."""


class MafTraining(TrainingConfig):
    """zuko's `MAF`: of images or a table by maximum likelihood, or of the Ising model by reverse KL."""

    family: Literal["maf"] = "maf"
    dataset: str | None = None
    """Images, each pixel a feature; or a table that scikit-learn bundles, each column a feature."""
    ising: IsingTable | None = None
    sigma: Annotated[Real, Field(gt=0)] = 0.4
    precision: Literal["auto", "float32", "bfloat16"] = "float32"

    transforms: Count = 8
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 128)
    """Units of the hidden layers of each transform's network; at least as many as there are features."""
    activation: Literal["ReLU", "ELU", "GELU", "SiLU", "Tanh"] = "ReLU"

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.dataset is None) == (self.ising is None):
            raise ValueError("give either dataset, for maximum likelihood, or ising, for reverse KL")
        return self


FlowTraining = TarFlowTraining | MafTraining | DiscreteTraining
FAMILIES: dict[str, type[FlowTraining]] = {"tarflow": TarFlowTraining, "maf": MafTraining, "discrete": DiscreteTraining}
"""Configurations by the key `family`; without one it is a TarFlow."""


def shipped_configs() -> list[str]:
    """Names of the configurations shipped with the package, those that made its flows among them."""
    return sorted(path.stem for path in ASSETS.glob("*.toml"))


def read_config(name_or_path: str, /, **overrides: object) -> tuple[str, FlowTraining]:
    """The name and the configuration of a shipped training, or of a TOML file; overrides of None leave its values.

    No such configuration, no TOML, an unknown key, or a value out of range are a `HarnessError`.
    """
    path = ASSETS / f"{name_or_path}.toml" if name_or_path in shipped_configs() else Path(name_or_path).expanduser()
    if not path.is_file() and path.suffix == ".toml":
        raise HarnessError(f"there is no training configuration at '{path}'")
    if not path.is_file():
        nearest = unknown("training configuration", name_or_path, shipped_configs())
        raise HarnessError(f"{nearest}; or give the path of a TOML file")
    values = read_toml(path) | {key: value for key, value in overrides.items() if value is not None}
    family = values.pop("family", "tarflow")
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


def command_line(name_or_path: str, *settings: str, **overrides: object) -> str:
    """The command of a training as a model card states it: without the folders of the machine it ran on.

    >>> command_line("somewhere/mine.toml", "layers=[2,1]", steps=100, seed=None)
    "harness train mine.toml --steps 100 --set 'layers=[2,1]'"
    """
    options = [f" --{key} {value}" for key, value in overrides.items() if value is not None]
    options += [f" --set {shlex.quote(setting)}" for setting in settings]
    return f"harness train {Path(name_or_path).name}{''.join(options)}"
