"""Making what a decoder reads: the one step in which anything is fitted to a flow or tuned for it on demand."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from harness.decoders import Decoder
from harness.decoders.decoder import CALIBRATION, CERTIFICATE, LAYER_ERRORS, ScheduleRequest
from harness.fitting.calibrate import store_calibration, store_ratio
from harness.fitting.selection import store_selection
from harness.fitting.tune import Tuner, store_schedule
from harness.flows.protocols import CausalFlow
from harness.flows.tap import untapped
from harness.metrics.neighbours import notice
from harness.progress import SILENT, Reporter

logger = logging.getLogger(__name__)


def prepare(
    decoder: Decoder, flow: CausalFlow, batch: int, report: Callable[[str], None] = logger.warning,
    reporter: Reporter = SILENT, enough_s: float | None = None,
) -> None:  # fmt: skip
    """Make what a decoder would read for such a batch and is missing, with as many samples as the fit asks for.

    It is stored for the flow's checkpoint, or kept with a flow that has none.

    Args:
        report: takes a sentence before each thing is made.
        reporter: told how far it is.
        enough_s: as of `Tuner`.
    """
    flow = untapped(flow)
    name = flow.source or "this flow"
    for need in decoder.needs(flow, batch):
        if isinstance(need, ScheduleRequest):
            report(f"no schedule for batch {need.batch} is stored for {name}; tuning now, as `harness tune` does")
            notice(report, torch.get_num_threads())
            tuner = Tuner(flow, reporter=reporter, enough_s=enough_s)
            store_schedule(flow, tuner.schedule(need.batch, need.budget))
        elif need == CERTIFICATE:
            report(f"certificates of {name} are not calibrated yet; measuring now, as `harness calibrate` does")
            store_ratio(flow, reporter)
        elif need == LAYER_ERRORS:
            report(f"{need} is not measured of {name} yet; measuring now, as `harness calibrate` does")
            store_selection(flow, reporter=reporter)
        else:
            what = "nothing is" if need == CALIBRATION else "no learned correction is"
            report(f"{what} fitted to {name} yet; fitting now, as `harness calibrate` does")
            store_calibration(flow, reporter=reporter, learned=need != CALIBRATION)
