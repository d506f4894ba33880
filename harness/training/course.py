"""What every training has in common: how long, how fast, and how it is run."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]

MAY_CHANGE = ("remark", "threads", "evaluate_every", "checkpoint_every", "held_out")
"""Keys that a resumed run may have otherwise than the run it continues: they do not change what is learned."""


class Course(BaseModel):
    """The course of a training, whatever is trained.

    Raises:
        ValidationError: an unknown key, or a value out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    may_change: ClassVar[tuple[str, ...]] = MAY_CHANGE

    steps: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup: Count = 100
    """Steps in which the learning rate rises to `learning_rate`."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the other steps, the last ones, in which it falls to 0 along a cosine. With less than 1, `steps` can
    still be changed by a resume while the rate is constant."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the averaged weights, which are those that are kept; smaller in the first steps."""
    seed: Annotated[int, Field(ge=0)] = 0

    threads: Count | None = None
    """Threads on the CPU. The weights depend on it in the last bits, so shipped configurations fix it."""
    evaluate_every: Count = 500
    checkpoint_every: Count = 250
    held_out: Count | None = None
    """Images of the test split that bits per dimension are measured on; None for all of them."""
    storage: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the released weights; `load_flow` casts them to the dtype asked for."""
    remark: str = ""
    """What a person saw in the samples of this very run; goes into the model card."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup > self.steps:
            raise ValueError(f"warmup ({self.warmup}) is longer than the training ({self.steps} steps)")
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
        """The steps after which snapshots are taken."""
        return ()

    def difference(self, other: Course, done: int) -> str | None:
        """The first key by which the first `done` steps of another training differ from those of this one, if any."""
        free = set(self.may_change)
        plans = [
            [course.learning_rate_at(step) for step in range(done)]
            + [step for step in course.snapshot_steps if step <= done]
            for course in (self, other)
        ]
        if plans[0] == plans[1]:
            free.add("steps")
        mine, theirs = self.model_dump(exclude=free), other.model_dump(exclude=free)
        return next((key for key in mine if mine[key] != theirs.get(key)), None)
