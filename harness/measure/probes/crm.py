"""Which layers are tough for Jacobi iteration, as GS-Jacobi predicts it and as it is measured (arXiv 2505.12849)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.datasets import load_dataset
from harness.decoders import build_decoder
from harness.errors import unknown
from harness.fitting.crm import layer_metrics
from harness.measure.probes.probe import Probe, Rows, Subject, Unit, probes

SOURCES = ("images", "samples")


@probes.register("crm")
@dataclass(kw_only=True)
class Crm(Probe):
    """Convergence ranking and initial guessing metrics of every layer, beside the iterations that UJD takes."""

    data: Annotated[
        str, Field(description="Real images of the training split (images), or exact samples (samples).")
    ] = "images"
    samples: Annotated[int, Field(ge=1, description="Images, or samples, of the forward pass.")] = 256
    batch: Annotated[int, Field(ge=1, description="Samples whose iterations are counted together.")] = 16
    tau: Annotated[float, Field(ge=0, description="Threshold of these iterations.")] = 0.01

    def units(self, subject: Subject) -> list[Unit]:
        """All layers at once.

        Raises:
            HarnessError: an unknown source of data.
        """
        if self.data not in SOURCES:
            raise unknown("data", self.data, SOURCES)
        return [Unit(f"forward pass over {self.samples} {self.data}", {}, ("crm",))]

    @torch.no_grad()
    def measure(self, subject: Subject, units: Sequence[Unit]) -> Iterator[dict[str, Rows]]:
        """One row per layer."""
        for _ in units:
            metrics = layer_metrics(subject.flow, *self._tokens(subject))
            latents, labels = subject.samples(range(self.batch))
            iterations = {}
            for guess in ("input", "zeros"):
                decoder = build_decoder("ujd", tau=self.tau, initial=guess, fallback="leave")
                traces = decoder.decode(subject.flow, latents, labels).layers
                iterations[guess] = {trace.layer: trace.iterations for trace in traces}
            yield {
                "crm": [
                    {
                        "layer": of.layer,
                        "block": of.block,
                        "data": self.data,
                        "crm": of.crm,
                        "crm_share": of.share,
                        "tough": of.tough,
                        "igm_input": of.igm["input"],
                        "igm_zeros": of.igm["zeros"],
                        "guess": of.guess,
                        "tau": self.tau,
                        "iterations_input": iterations["input"][of.layer],
                        "iterations_zeros": iterations["zeros"][of.layer],
                    }
                    for of in metrics
                ]
            }

    def _tokens(self, subject: Subject) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) data and labels (B,)."""
        flow = subject.flow
        if self.data == "samples":
            latents, labels = subject.samples(range(self.samples))
            return build_decoder("sequential").decode(flow, latents, labels).tokens, labels
        size = None if flow.image_shape is None else flow.image_shape[-1]
        real = load_dataset(subject.dataset, "train", root=subject.data_root, size=size)
        images = real.scaled(slice(self.samples)).to(subject.device)
        labels = None if real.labels is None or not flow.num_classes else real.labels[: self.samples].to(subject.device)
        return flow.to_tokens(images), labels  # type: ignore[attr-defined]
