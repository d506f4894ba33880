"""The fastest schedule that a measurement found to stay within a budget: every layer decoded in its own way."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from harness.decoders.decoder import Decoder, LayerTrace, build_decoder, decoders
from harness.decoders.fits import checkpoint_digest, stored_beside
from harness.decoders.micro_batches import Footprint
from harness.errors import HarnessError, unknown
from harness.files import read_toml, write_text
from harness.flows.precision import multiplies_bfloat16
from harness.flows.protocols import CausalFlow, CausalLayer, Condition
from harness.flows.tap import untapped

logger = logging.getLogger(__name__)

FEW = 32
"""Latents that are tuned on at first use."""


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
        layers: one choice per layer, in decoding order.
        device: ``"cpu"`` or ``"cuda"``.
        batch: samples decoded together when it was tuned.
        budget: the deviation (RMSE of tokens to the exact sample) that was allowed; None for SeJD's at tau 0.5.
        allowed: the deviation that the budget came to; SeJD's own is a lower bound of it, see `harness.fitting.tune`.
        deviation: what latents that were not tuned on had; its upper bound is within what is allowed.
        predicted_s: seconds of one decode, from the cost of each layer's choice.
        digest: of the checkpoint; empty for a flow without one.
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
        """Write it as TOML."""
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
        """Read what `save` wrote, or somebody edited.

        Raises:
            HarnessError: no such file, or not a schedule.
        """
        facts = read_toml(path)
        try:
            layers = tuple(LayerChoice(str(layer.pop("decoder")), layer) for layer in facts["layers"])
            budget = None if facts["budget"] == "sejd" else float(facts["budget"])
            numbers = {name: float(facts[name]) for name in ("allowed", "deviation", "predicted_s")}
            schedule = cls(layers, facts["device"], int(facts["batch"]), budget, digest=facts["checkpoint"], **numbers)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise HarnessError(f"'{path}' is not a schedule as `harness tune` writes it: {error!r}") from error
        for choice in layers:
            choice.build()
        return schedule


def schedule_path(source: Path, device: str, batch: int, budget: float | None) -> Path:
    """Where the schedule of a checkpoint is stored."""
    return stored_beside(source, _suffix(device, str(batch), budget))


def stored_schedule(source: Path, device: str, batch: int, budget: float | None) -> LayerSchedule | None:
    """The stored schedule whose batch size is nearest, by ratio; None when there is none for the device and budget.

    Raises:
        HarnessError: it is damaged, or belongs to another checkpoint.
    """
    name = checkpoint_digest(source)[:16] + _suffix(device, "(\\d+)", budget)
    folders = {stored_beside(source, end).parent for end in (".safetensors", _suffix(device, str(batch), budget))}
    found = {
        int(match[1]): path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if (match := re.fullmatch(name, path.name))
    }
    if not found:
        return None
    nearest = min(found, key=lambda size: (abs(math.log(size / batch)), size))
    schedule = LayerSchedule.load(found[nearest])
    if schedule.digest != checkpoint_digest(source):
        raise HarnessError(f"the schedule '{found[nearest]}' was tuned for another checkpoint than '{source}'")
    return schedule


def _suffix(device: str, batch: str, budget: float | None) -> str:
    return f"-{device}-batch{batch}{'' if budget is None else f'-budget{budget:g}'}.toml"


@decoders.register("auto")
@dataclass(kw_only=True)
class Auto(Decoder):
    """Each layer by the decoder that was fastest on this device among those that keep the sample within a budget.

    `harness tune` measures and stores the schedule; the one for the nearest batch size is used, and where there is
    none it is tuned on first use. A schedule is a fixed amount of work per layer, so a sample never depends on the
    others in its batch. It holds for samples without guidance, which is what it was tuned on. Where it was tuned for
    networks in bfloat16, a device without instructions for that runs them in the flow's own dtype, which is nearer to
    the exact sample; `harness tune` finds what is fastest there.

    Args:
        budget: the deviation allowed, RMSE of tokens to the exact sample; None for that of SeJD at tau 0.5; 0 for the
            exact sample. With tau 0 the budget is 0.
        schedule: a file that `harness tune` wrote; None for the one of the checkpoint.
        fallback: as for any decoder; only what overflowed is decoded again.
    """

    budget: float | None = None
    schedule: Any = None
    fallback: str = "non-finite"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None and not (self.budget >= 0 and math.isfinite(self.budget)):
            raise HarnessError(f"budget must be a deviation of 0 or more, not {self.budget}")
        self._layers: list[Decoder] = []

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        """With one bound decoder per layer."""
        bound = replace(self)
        if self.tau == 0 or self.budget == 0:
            bound._layers = [LayerChoice("sequential").build()] * flow.num_layers
        else:
            bound._layers = self._find(flow, batch)
        return bound

    @property
    def reads_fits(self) -> bool:
        """Unless it is exact."""
        return not (self.tau == 0 or self.budget == 0)

    def fits_digest(self, flow: CausalFlow, batch: int) -> str:
        """Of the schedule, and of the calibration where a layer uses it."""
        choices = [str(choice) for choice in self._schedule(untapped(flow), batch).layers]
        fits = {layer.fits_digest(flow, batch) for layer in self._find(flow, batch) if layer.reads_fits}
        return hashlib.sha256(json.dumps([choices, sorted(fits)]).encode()).hexdigest()[:16]

    def footprint(self, layer: CausalLayer) -> Footprint:
        """Of the layer's own way."""
        return self._layers[layer.number - 1].footprint(layer) if self._layers else super().footprint(layer)

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Solve the layer in its own way."""
        if not self._layers:
            raise HarnessError("what the schedule is, is known only once the decoder is bound to a flow")
        return self._layers[layer.number - 1].solve(layer, inputs, condition)

    def _find(self, flow: CausalFlow, batch: int) -> list[Decoder]:
        """One bound decoder per layer, kept for as long as the flow lives."""
        flow = untapped(flow)
        kept = _kept.setdefault(flow, {})
        key = (batch, self.budget, None if self.schedule is None else str(self.schedule))
        if key not in kept:
            kept[key] = bind_choices(flow, batch, self._schedule(flow, batch).layers)
        return kept[key]

    def _schedule(self, flow: CausalFlow, batch: int) -> LayerSchedule:
        if self.schedule is not None:
            return LayerSchedule.load(Path(self.schedule))
        device, source = flow.device, flow.source
        stored = None if source is None else stored_schedule(source, device.type, batch, self.budget)
        schedule = stored or _tune_now(flow, source, batch, self.budget)
        if multiplies_bfloat16(device):
            return schedule
        return replace(schedule, layers=tuple(choice.with_networks(None) for choice in schedule.layers))


_kept: WeakKeyDictionary[CausalFlow, dict[tuple[int, float | None, str | None], list[Decoder]]] = WeakKeyDictionary()
"""What the layers of the flows that are alive are decoded by."""


def bind_choices(flow: CausalFlow, batch: int, choices: Sequence[LayerChoice]) -> list[Decoder]:
    """One decoder per layer, bound to the flow; layers of one choice share theirs.

    Raises:
        HarnessError: there are not as many choices as the flow has layers.
    """
    if len(choices) != flow.num_layers:
        raise HarnessError(f"the schedule has {len(choices)} layers, but the flow has {flow.num_layers}")
    built = {str(choice): choice.build().bind(flow, batch) for choice in choices}
    return [built[str(choice)] for choice in choices]


def _tune_now(flow: CausalFlow, source: Path | None, batch: int, budget: float | None) -> LayerSchedule:
    from harness.fitting.tune import Tuner, tune_checkpoint  # it decodes, and so imports this package

    logger.warning("no schedule is stored for batch %d; tuning now, as `harness tune` does", batch)
    if source is None:
        return Tuner(flow, FEW).schedule(batch, budget)
    (path,) = tune_checkpoint(flow, source, [batch], [budget], FEW)
    return LayerSchedule.load(path)
