"""What a clause is given, and how it answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.decoders import Decoder, build_decoder, decoders
from harness.decoders.exact import ExactBatch
from harness.fitting import prepare
from harness.flows import CausalFlow

TOLERANCE = 1e-4
"""Largest difference, relative to the largest token where that is above 1, that counts as the same in float32."""


class Broken(Exception):
    """A clause does not hold; the message is the evidence."""


class NotApplicable(Exception):
    """A clause says nothing about this decoder or flow; the message is the reason."""


@dataclass(frozen=True)
class Finding:
    """What came of one clause."""

    clause: str
    flow: str
    seed: int
    outcome: str  # passed, failed, or not applicable
    evidence: str  # a figure or a reason


@dataclass
class Case:
    """One decoder on one flow from one seed."""

    decoder: str  # a registered name, or package.module:Class
    flow: CausalFlow
    flow_name: str = "flow"
    seed: int = 0  # of latents, labels and the random flows
    batch: int = 3  # samples decoded together
    options: Mapping[str, Any] = field(default_factory=dict)  # of the decoder, wherever a clause does not set them

    def build(self, **options: Any) -> Decoder:
        """The decoder with its options, changed by a clause's own; what it reads of the flow is made where missing."""
        decoder = build_decoder(self.decoder, **{**self.options, **options})
        prepare(decoder, self.flow, self.batch)
        return decoder

    def takes(self, option: str) -> bool:
        """Whether the decoder's constructor has an option of that name."""
        return option in inspect.signature(decoders.get(self.decoder)).parameters

    @property
    def latents(self) -> Tensor:
        """(B, L, D) standard normal numbers, the same for the same seed; drawn anew, lest a decoder spoils them."""
        return self.flow.sample_latents(self.batch, torch.Generator().manual_seed(self.seed))

    @property
    def labels(self) -> Tensor | None:
        """(B,) a class each, the last sample without one; None for an unconditional flow."""
        if not self.flow.num_classes:
            return None
        labels = torch.arange(self.batch) % self.flow.num_classes
        labels[-1] = -1
        return labels

    @cached_property
    def exact(self) -> Tensor:
        return ExactBatch(self.flow, self.latents, self.labels).exact


Clause = Callable[[Case], str]
CLAUSES: dict[str, Clause] = {}
"""Every clause by name, in the order in which they are reported."""


def clause(name: str) -> Callable[[Clause], Clause]:
    """Decorator that adds a clause; its docstring's first line is the promise."""

    def add(function: Clause) -> Clause:
        CLAUSES[name] = function
        return function

    return add


def distance(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted number where that is above 1; NaN if either has one."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))
