"""What a masked autoregressive flow is trained on, and for how long: a TOML file with ``family = "maf"``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.training.course import Count, Course


class IsingTable(BaseModel):
    """The model whose Boltzmann distribution is learned by reverse KL, see `harness.flows.ising`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: Annotated[int, Field(ge=3, le=10)]
    """Of the periodic square lattice."""
    temperature: Annotated[float, Field(gt=0)]
    """In units of the coupling."""


class MafConfig(Course):
    """A training of zuko's `MAF`: of images by maximum likelihood, or of the Ising model by reverse KL.

    Raises:
        ValidationError: an unknown key, a value out of range, or not exactly one of `dataset` and `ising`.
    """

    family: Literal["maf"] = "maf"
    dataset: str | None = None
    """Images; each pixel is a feature."""
    noise: Literal["gaussian", "uniform"] = "gaussian"
    sigma: Annotated[float, Field(gt=0)] = 0.4
    """Of the noise that dequantises images: its standard deviation or half its width, in image units ([-1, 1])."""
    ising: IsingTable | None = None

    transforms: Count = 8
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 128)
    """Units of the hidden layers of each transform's network; at least as many as there are features."""
    activation: Literal["ReLU", "ELU", "GELU", "SiLU", "Tanh"] = "ReLU"

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.dataset is None) == (self.ising is None):
            raise ValueError("give either dataset, for maximum likelihood, or ising, for reverse KL")
        return self
