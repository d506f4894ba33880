"""The shape of a TarFlow as columns: what costs depend on."""

from __future__ import annotations

from typing import Any

from harness.errors import HarnessError
from harness.flows.protocols import CausalFlow
from harness.flows.tarflow import TarFlow


def tarflow_of(flow: CausalFlow) -> TarFlow:
    """The flow itself. Raises HarnessError: it is no TarFlow."""
    if not isinstance(flow, TarFlow):
        raise HarnessError("this probe needs the shape of a TarFlow; give one, such as cifar10 or random:4-128-6-2@32")
    return flow


def network_columns(flow: CausalFlow) -> dict[str, Any]:
    """channels and transformer_layers of every layer's network, and the flow's classes."""
    config = tarflow_of(flow).config
    if len(set(config.depths)) > 1:
        raise HarnessError(f"this probe needs blocks of one depth; these have {config.layers_per_block} layers")
    return {"channels": config.channels, "transformer_layers": config.depths[0], "classes": config.num_classes}


def image_columns(flow: CausalFlow) -> dict[str, Any]:
    """image_size and patch."""
    config = tarflow_of(flow).config
    return {"image_size": config.image_size, "patch": config.patch}
