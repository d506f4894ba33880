"""Schedules that `harness tune` stores: how to decode each layer of a flow, by device, batch size and budget."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.decoders.decoder import Decoder, build_decoder, decoders
from harness.decoders.stored import checkpoint_digest, file_name, folders
from harness.errors import HarnessError, unknown
from harness.files import read_toml, write_text
from harness.flows.protocols import CausalFlow
from harness.options import reason

SERVES = 2
"""A schedule is as good as one of their own for batches that are larger or smaller by at most this factor."""


@dataclass(frozen=True)
class LayerChoice:
    """How one layer is decoded: a decoder and its options."""

    decoder: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Decoder:
        """The decoder.

        Raises:
            HarnessError: no such decoder, or options that it does not take. A schedule lies beside a checkpoint, as
                little trusted as that, so it names registered decoders only: none is imported for it.
        """
        if self.decoder not in decoders.names():
            raise unknown("decoder", self.decoder, decoders.names())
        return build_decoder(self.decoder, **self.options)

    def with_networks(self, dtype: str | None) -> LayerChoice:
        """The same with the layer's network in half precision, or in the flow's own dtype; sequential has no choice."""
        options = {name: value for name, value in self.options.items() if name != "network_dtype"}
        if dtype is not None and self.decoder != "sequential":
            options["network_dtype"] = dtype
        return replace(self, options=options)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.decoder}({options})"


@dataclass(frozen=True)
class LayerSchedule:
    """What was tuned for a checkpoint, a kind of device and a batch size.

    Args:
        batch: samples decoded together when it was tuned.
        budget: the deviation (RMSE of tokens to the exact sample) that was allowed; None for SeJD's at tau 0.5.
        allowed: the deviation that the budget came to; SeJD's own is a lower bound of it, see `harness.fitting.tune`.
        deviation: what latents that were not tuned on had; its upper bound is within what is allowed.
        predicted_s: seconds of one decode, from the cost of each layer's choice.
    """

    layers: tuple[LayerChoice, ...]
    device: str
    batch: int
    budget: float | None
    allowed: float
    deviation: float
    predicted_s: float
    digest: str = ""

    def save(self, path: Path) -> None:
        facts = {
            "checkpoint": self.digest,
            "device": self.device,
            "batch": self.batch,
            "budget": "sejd" if self.budget is None else self.budget,
            "allowed": self.allowed,
            "deviation": self.deviation,
            "predicted_s": self.predicted_s,
        }
        lines = [
            "# Written by `harness tune`: how the decoder 'auto' decodes each layer, in decoding order.",
            "# allowed: RMSE to the exact sample that the budget came to; deviation: what held-out latents had.",
            *(f"{name} = {json.dumps(value)}" for name, value in facts.items()),
        ]
        for choice in self.layers:
            lines += ["", "[[layers]]", f"decoder = {json.dumps(choice.decoder)}"]
            lines += [f"{name} = {json.dumps(value)}" for name, value in choice.options.items()]
        write_text(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: Path) -> LayerSchedule:
        """Read what `save` wrote, or somebody edited."""
        facts = read_toml(path)
        try:
            layers = tuple(LayerChoice(str(layer.pop("decoder")), layer) for layer in facts["layers"])
            budget = None if facts["budget"] == "sejd" else float(facts["budget"])
            numbers = {name: float(facts[name]) for name in ("allowed", "deviation", "predicted_s")}
            schedule = cls(layers, facts["device"], int(facts["batch"]), budget, digest=facts["checkpoint"], **numbers)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise HarnessError(f"'{path}' is not a schedule as `harness tune` writes it: {reason(error)}") from error
        for choice in layers:
            choice.build()
        return schedule

    def serves(self, batch: int) -> bool:
        """Whether a batch of this size needs no schedule of its own."""
        return self.batch <= SERVES * batch and batch <= SERVES * self.batch


def schedule_suffix(device: str, batch: int | str, budget: float | None) -> str:
    """What the name of its file ends with."""
    return f"-{device}-batch{batch}{'' if budget is None else f'-budget{budget:g}'}.toml"


def find_schedule(flow: CausalFlow, batch: int, budget: float | None) -> LayerSchedule | None:
    """The schedule of a flow whose batch size is nearest, by ratio; None where the device and budget have none."""

    def nearness(size: int) -> tuple[float, int]:
        return abs(math.log(size / batch)), size

    if flow.source is None:
        kept: dict[int, LayerSchedule] = flow.fits.get((LayerSchedule, budget), {})
        return kept[min(kept, key=nearness)] if kept else None
    name = file_name(flow.source, re.escape(schedule_suffix(flow.device.type, "BATCH", budget)))
    pattern = re.compile(name.replace("BATCH", "([1-9]\\d*)"))
    found = {
        int(match[1]): path
        for folder in reversed(folders(flow.source))
        if folder.is_dir()
        for path in folder.iterdir()
        if (match := pattern.fullmatch(path.name))
    }
    if not found:
        return None
    path = found[min(found, key=nearness)]
    schedule = LayerSchedule.load(path)
    if schedule.digest != checkpoint_digest(flow.source):
        raise HarnessError(f"the schedule '{path}' was tuned for another checkpoint than '{flow.source}'")
    return schedule
