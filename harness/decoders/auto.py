"""The fastest schedule that a measurement found to stay within a budget: every layer decoded in its own way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from harness.decoders.calibration import find_calibration
from harness.decoders.decoder import LEARNED_TOO, Decoder, Fallback, LayerTrace, Missing, ScheduleRequest, decoders
from harness.decoders.micro_batches import Footprint
from harness.decoders.schedule import LayerChoice, LayerSchedule, find_schedule
from harness.decoders.stored import called
from harness.errors import HarnessError
from harness.flows.precision import multiplies_bfloat16
from harness.flows.protocols import CausalFlow, CausalLayer, Condition


@decoders.register("auto")
@dataclass(kw_only=True)
class Auto(Decoder):
    """Each layer by the decoder that was fastest on this device among those that keep the sample within a budget.

    `harness tune` measures and stores the schedule; the one for the nearest batch size is used. A schedule is a fixed
    amount of work per layer, so a sample never depends on the others in its batch. It holds for samples without
    guidance, which is what it was tuned on. Where it was tuned for networks in bfloat16, a device without instructions
    for that runs them in the flow's own dtype, which is nearer to the exact sample; `harness tune` finds what is
    fastest there.

    Args:
        budget: the deviation allowed, RMSE of tokens to the exact sample; None for that of SeJD at tau 0.5; 0 for the
            exact sample. With tau 0 the budget is 0.
        schedule: a file that `harness tune` wrote; None for the one of the checkpoint.
    """

    takes_tau = False

    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    schedule: Path | None = None
    fallback: Fallback = "non-finite"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._layers: list[Decoder] = []

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        bound = replace(self)
        bound._layers = self._find(flow, batch)
        return bound

    @property
    def reads_fits(self) -> bool:
        return not (self.tau == 0 or self.budget == 0)

    def missing(self, flow: CausalFlow, batch: int) -> list[Missing]:
        if not self.reads_fits:
            return []
        schedule = self._stored(flow, batch)
        if schedule is not None and (self.schedule is not None or schedule.serves(batch)):
            return list(
                dict.fromkeys(need for choice in schedule.layers for need in choice.build().missing(flow, batch))
            )
        found = find_calibration(flow)  # which tuning reads
        calibration: list[Missing] = [] if found is not None and found.complete else [LEARNED_TOO]
        return [*calibration, ScheduleRequest(batch, self.budget)]

    def fits_digest(self, flow: CausalFlow, batch: int) -> str | None:
        if not self.reads_fits:
            return None
        choices = [str(choice) for choice in self._schedule(flow, batch).layers]
        fits = {digest for layer in self._find(flow, batch) if (digest := layer.fits_digest(flow, batch))}
        return hashlib.sha256(json.dumps([choices, sorted(fits)]).encode()).hexdigest()[:16]

    def footprint(self, layer: CausalLayer) -> Footprint:
        return self._layers[layer.number - 1].footprint(layer) if self._layers else super().footprint(layer)

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        if not self._layers:
            raise HarnessError("what the schedule is, is known only once the decoder is bound to a flow")
        return self._layers[layer.number - 1].solve(layer, inputs, condition)

    def _find(self, flow: CausalFlow, batch: int) -> list[Decoder]:
        """One bound decoder per layer, kept for as long as the flow lives."""
        if not self.reads_fits:
            return bind_choices(flow, batch, [LayerChoice("sequential")] * flow.num_layers)
        key = (Auto, batch, self.budget, self.schedule)
        if key not in flow.fits:
            flow.fits[key] = bind_choices(flow, batch, self._schedule(flow, batch).layers)
        return flow.fits[key]

    def _stored(self, flow: CausalFlow, batch: int) -> LayerSchedule | None:
        return LayerSchedule.load(self.schedule) if self.schedule else find_schedule(flow, batch, self.budget)

    def _schedule(self, flow: CausalFlow, batch: int) -> LayerSchedule:
        schedule = self._stored(flow, batch)
        if schedule is None:
            raise HarnessError(
                f"no schedule is stored for {flow.source or 'this flow'} on {flow.device.type}: run `harness tune "
                f"{called(flow)} --batch {batch}`, or call harness.fitting.prepare(decoder, flow, batch)"
            )
        if multiplies_bfloat16(flow.device):
            return schedule
        return replace(schedule, layers=tuple(choice.with_networks(None) for choice in schedule.layers))


def bind_choices(flow: CausalFlow, batch: int, choices: Sequence[LayerChoice]) -> list[Decoder]:
    """One decoder per layer, bound to the flow; layers of one choice share theirs."""
    if len(choices) != flow.num_layers:
        raise HarnessError(f"the schedule has {len(choices)} layers, but the flow has {flow.num_layers}")
    built = {str(choice): choice.build().bind(flow, batch) for choice in choices}
    return [built[str(choice)] for choice in choices]
