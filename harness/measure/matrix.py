"""An experiment matrix: what a TOML file may say. `harness.measure.cells` turns it into cells.

Every mistake in a file becomes one sentence that names the key and what would be right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.errors import HarnessError, unknown
from harness.files import file_name, read_toml
from harness.options import Batch, Count, NonNegative, Positive, Real, Seed, Table, sentence
from harness.registry import BrokenCode, load_foreign

SHIPPED = Path(str(files("harness.measure"))) / "matrices"
GROUP = "harness.matrices"
"""Entry points of this group name packages whose folder holds further ``.toml`` matrices."""

Some = Field(min_length=1)
MOST_CELLS, MOST_DECODES = 10_000, 1_000_000
"""Cells of a matrix before its filters, and times that all of them are timed in all: more is refused."""


class GuidanceTable(Table):
    """Classifier-free guidance; scale 0 is none. See `harness.flows.protocols.Guidance`."""

    scale: Real
    components: Literal["a", "b", "ab"] = "ab"
    annealed: bool = False
    temperature: Positive = 1.0


Denoise = bool | Positive
"""A denoising step after decoding: false for none, true for the noise that the checkpoint was trained with, or a noise
in image units ([-1, 1])."""


class DatasetTable(Table):
    """Real images and the flow that was trained on them.

    `checkpoint` is a flow's name or a file, by default the dataset's name; `weights` are which ones of it, where it
    holds several, see `load_flow`; `root` is the folder of the images, by default $HARNESS_DATA; `size` their side, by
    default the flow's; `guidance` and `denoise` override the grid's, and with `published` they are what the publishers
    evaluated the checkpoint with. With `optional` a checkpoint that is not there costs rows of the status "skipped".
    """

    name: str
    checkpoint: str | None = None
    weights: str | None = None
    root: str | None = None
    size: Count | None = None
    guidance: Annotated[list[GuidanceTable], Some] | None = None
    denoise: Annotated[list[Denoise], Some] | None = None
    published: bool = False
    optional: bool = False


class DecoderTable(Table):
    """A decoder by name or ``package.module:Class``; every further key is an option of it.

    An option written as ``{ grid = [...] }`` takes part in the product; `tau`, one or several, overrides the grid's.
    `label` is what tables and figures call it, by default its name and the options that are not its defaults.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str
    label: str | None = None
    tau: Annotated[list[NonNegative], Some] | None = None

    @field_validator("tau", mode="before", json_schema_input_type=NonNegative | Annotated[list[NonNegative], Some])
    @classmethod
    def _one_tau(cls, tau: Any) -> Any:
        return [tau] if isinstance(tau, int | float) and not isinstance(tau, bool) else tau

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Grid(Table):
    """What every dataset and decoder is multiplied with.

    `tau` are stopping thresholds, `batch_sizes` samples decoded together, `seeds` those of the latents; for `guidance`
    and `denoise` see the entries of datasets.
    """

    tau: Annotated[list[NonNegative], Some] = [0.5]
    batch_sizes: Annotated[list[Batch], Some] = [16]
    seeds: Annotated[list[Seed], Some] = [0]
    guidance: Annotated[list[GuidanceTable], Some] = [GuidanceTable(scale=0.0)]
    denoise: Annotated[list[Denoise], Some] = [False]


class Filter(Table):
    """Names cells: those whose every given key is the value, or one of the values, given here.

    The keys are `dataset`, `checkpoint`, `decoder`, `label`, `tau`, `batch_size` and `seed`.
    """

    dataset: str | list[str] | None = None
    checkpoint: str | list[str] | None = None
    decoder: str | list[str] | None = None
    label: str | list[str] | None = None
    tau: float | list[float] | None = None
    batch_size: int | list[int] | None = None
    seed: int | list[int] | None = None

    def matches(self, facts: Mapping[str, Any]) -> bool:
        given = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        return all(facts[name] in (value if isinstance(value, list) else [value]) for name, value in given.items())


class Timing(Table):
    """Paired `rounds`, after `warmup` that are not kept; each decodes every cell of a group once."""

    rounds: Count = 5
    warmup: Annotated[int, Field(ge=0, le=MOST_DECODES)] = 1


class Quality(Table):
    """Samples against the sequential ones and against real images.

    Samples are decoded in the cell's own batch size, since the batch is the scope of stopping rules; `max_batches`
    bounds the cost of small batches, whose rows then rest on fewer than `num_samples` and carry no FID. A cell is valid
    when its deviation is at most `max_deviation` (RMSE in image units) and its FID at most sequential's times
    1 + `max_fid_increase`.
    """

    enabled: bool = True
    num_samples: Annotated[Count, Field(ge=2)] = 1000
    max_batches: Count = 1000
    max_deviation: NonNegative = 0.15
    max_fid_increase: NonNegative = 0.05


class Switch(Table):
    """A pass that can be switched off: `enabled` is false."""

    enabled: bool = True


def _of_a_file(schema: dict[str, Any]) -> None:
    """A file need not state its name, and may hold profiles, each a part of it."""
    schema["required"].remove("name")
    part = {"type": "object", "additionalProperties": False, "properties": dict(schema["properties"])}
    schema["properties"]["profiles"] = {"type": "object", "additionalProperties": part}


class Matrix(Table):
    """An experiment: every dataset is decoded by every decoder, at every setting of the grid.

    A file may be without `name`, which is then its own, and hold `profiles` by name, each a table of keys that override
    these. `device` "auto" is CUDA where there is one; `dtype` is of the networks. Of the cells, those that a filter of
    `include` names are measured, or all where it has none, less those that one of `exclude` names. `memory` and
    `residuals` are passes of their own, beside `timing` and `quality`.
    """

    besides: ClassVar[tuple[str, ...]] = ("profiles",)
    model_config = ConfigDict(json_schema_extra=_of_a_file)

    name: str
    description: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "tf32", "float64", "bfloat16", "float16"] = "float32"
    datasets: Annotated[list[DatasetTable], Some]
    decoders: Annotated[list[DecoderTable], Some]
    grid: Grid = Grid()
    include: list[Filter] = []
    exclude: list[Filter] = []
    timing: Timing = Timing()
    quality: Quality = Quality()
    memory: Switch = Switch()
    residuals: Switch = Switch()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return file_name("a matrix", name)

    @property
    def most_cells(self) -> int:
        """How many cells the product has, its filters aside; at most, since some decoders take no tau."""
        grid, variants = self.grid, 0
        for table in self.decoders:
            grids = [value.get("grid") for value in table.options.values() if isinstance(value, dict)]
            variants += len(table.tau or grid.tau) * math.prod(len(one) for one in grids if isinstance(one, list))
        settings = sum(len(one.guidance or grid.guidance) * len(one.denoise or grid.denoise) for one in self.datasets)
        return variants * settings * len(grid.batch_sizes) * len(grid.seeds)

    @model_validator(mode="after")
    def _is_no_slip(self) -> Self:
        cells, decodes = self.most_cells, self.most_cells * (self.timing.rounds + self.timing.warmup)
        if cells > MOST_CELLS or decodes > MOST_DECODES:
            most = f"at most {MOST_CELLS:,} and {MOST_DECODES:,} are measured in one run"
            raise ValueError(f"is a product of {cells:,} cells and {decodes:,} decodes to be timed; {most}")
        return self

    @model_validator(mode="after")
    def _filters_name_what_is_there(self) -> Self:
        known = {
            "dataset": [dataset.name for dataset in self.datasets],
            "decoder": [decoder.name for decoder in self.decoders],
        }
        for entry in (*self.include, *self.exclude):
            for field, names in known.items():
                given = getattr(entry, field) or []
                for name in [given] if isinstance(given, str) else given:
                    if name not in names:
                        raise ValueError(f"filters by {unknown(field, name, set(names))}")
        return self


def matrices() -> dict[str, Path]:
    """Matrices by name: the shipped ones and those of installed plugins."""
    folders = [SHIPPED, *(folder for found in installed().values() if not isinstance(found, str) for folder in found)]
    return {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.toml"))}


def installed() -> dict[str, list[Path] | str]:
    """Of every installed package of matrices its folders, or why it is broken."""
    found: dict[str, list[Path] | str] = {}
    for entry in entry_points(group=GROUP):
        try:
            package: Any = load_foreign(f"the matrices '{entry.name}'", entry.load)
            found[entry.name] = [*map(Path, package.__path__)]
        except (BrokenCode, AttributeError) as error:
            found[entry.name] = f"'{entry.value}' is no importable package: {error}"
    return found


def matrix_path(name_or_path: str) -> Path:
    """The file of a matrix, by name or path. Raises HarnessError: there is none."""
    path = Path(name_or_path).expanduser()
    if path.suffix == ".toml":
        if not path.is_file():
            raise HarnessError(f"there is no matrix at '{path}'")
        return path
    known = matrices()
    if name_or_path not in known:
        raise HarnessError(f"{unknown('matrix', name_or_path, known)}; or give the path of a .toml file")
    return known[name_or_path]


def load_matrix(name_or_path: str, profile: str | None = None, overrides: Mapping[str, Any] | None = None) -> Matrix:
    """Read and validate a matrix. Raises HarnessError: the file is missing or wrong; the sentence names the key.

    Args:
        name_or_path: a shipped or installed matrix, or a ``.toml`` file.
        profile: a table of ``[profiles]`` whose keys override the file's; lists are replaced, tables merged.
        overrides: further keys that override the file's, as from the command line; a list under ``"decoders"`` is
            appended instead.
    """
    path = matrix_path(name_or_path)
    return build_matrix({"name": path.stem} | read_toml(path), f"'{path}'", profile, overrides)


def build_matrix(
    raw: Mapping[str, Any], where: str, profile: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Matrix:
    """Validate a matrix given as plain tables: a file's content, or a part; a `HarnessError` names the key at fault."""
    tables = dict(raw)
    profiles = tables.pop("profiles", {})
    if profile is not None:
        if not isinstance(profiles, dict) or profile not in profiles:
            raise unknown(f"profile of {where}:", profile, profiles)
        tables = merged(tables, profiles[profile])
    overrides = dict(overrides or {})
    extra = overrides.pop("decoders", [])
    if extra and isinstance(tables.get("decoders"), list):
        tables["decoders"] = [*tables["decoders"], *extra]
    try:
        return Matrix.model_validate(merged(tables, overrides))
    except ValidationError as error:
        raise HarnessError(f"{where}: {sentence(error)}") from error


def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: tables key by key, everything else replaced."""
    result = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both_tables else value
    return result
