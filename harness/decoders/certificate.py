"""The certificate: one forward pass says how far a sample is from the exact one, and what is too far is polished.

A decode is exact where the flow gives back the latents that it began with, so ``encode(sample) - latents``, on the
prior's own scale, tells its error without the exact sample being known: here the root mean square and the maximum over
each sample's numbers. How much of it is deviation is a constant of the flow with a spread, which `harness calibrate`
measures. So what is told is an estimate, and an upper quantile of it; it is no bound, which would take a Lipschitz
constant of the inverse.

Samples whose upper quantile is above a tolerance are *polished*: every layer is iterated on from the output that it
had, with the input that it gets by now and the last correction that was fitted to it, until its update is small. A
layer that was exact and whose input has not changed is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.decoders.calibration import Calibration, find_calibration
from harness.decoders.solver import Correction, solve_sequential, solve_windows
from harness.decoders.trace import Certificate, Laps, LayerTrace, Ratio
from harness.decoders.windows import Blocks
from harness.errors import HarnessError
from harness.flows.calls import invert
from harness.flows.modules import LayerWrapper
from harness.flows.protocols import CausalFlow, CausalLayer, Condition

SHARES = (0.4, 0.1, 0.02)
"""Of the tolerance: the RMS of a sample's last update in a layer, round by round of polishing. After them the samples
that are still above are decoded token by token."""


@dataclass
class Walked:
    """A decode that went through all layers, and what it left.

    Args:
        layers: in decoding order.
        latents: (B, L, D) on the prior's scale.
        outputs: (B, L, D) of every layer, in its own order.
        traces: of every layer; what certifying and polishing take is added.
        calibration: what polishing corrects iterations by; None for a flow that nothing is fitted to.
    """

    layers: Sequence[CausalLayer]
    latents: Tensor
    condition: Condition
    outputs: list[Tensor]
    traces: list[LayerTrace]
    laps: Laps
    calibration: Calibration | None = None

    @property
    def tokens(self) -> Tensor:
        """(B, L, D) samples in raster order."""
        return self.layers[-1].restore(self.outputs[-1])

    def certify(self, tolerance: float | None, ratio: Ratio | None) -> Certificate:
        """The certificate of every sample, after those above a tolerance were polished; None polishes none."""
        everyone = torch.arange(len(self.latents), device=self.latents.device)
        found = Certificate(*self._residual(everyone), everyone < 0, ratio, tolerance)
        for share in (*SHARES, None):
            rows = everyone[found.above]
            if tolerance is None or not len(rows) or all(trace.exact for trace in self.traces):
                break
            self._polish(rows, None if share is None else share * tolerance)
            found.polished[rows] = True
            found.rms[rows], found.largest[rows] = self._residual(rows)
        return found

    def _residual(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """RMS and maximum of ``encode(sample) - latents``, (b,) each."""
        tokens, condition = self.tokens, self.condition.select(rows)
        for place in reversed(range(len(self.layers))):
            layer = self.layers[place]
            x = layer.arrange(tokens)
            tokens = layer.restore(x.index_copy(0, rows, invert(layer, x[rows], condition)[0]))
            self._add(place, (layer.num_tokens - 1) * condition.passes, 1, len(rows))
        return _norms((tokens - self.latents)[rows])

    def _polish(self, rows: Tensor, tau: float | None) -> None:
        """Go through the layers again for some samples, until the RMS of an update is below `tau`; None is exact."""
        tokens, condition, changed = self.latents, self.condition.select(rows), False
        for place, layer in enumerate(self.layers):
            inputs = layer.arrange(tokens)
            if changed or not self.traces[place].exact:
                start = self.outputs[place][rows].nan_to_num(posinf=0.0, neginf=0.0)
                if tau is None:
                    solved, trace = solve_sequential(layer, inputs[rows], condition)
                else:
                    solved, trace = solve_windows(
                        layer, inputs[rows], condition, start, Blocks(layer.num_tokens, tau),
                        norm="rms", scope="sample", correction=self._correction(layer),
                    )  # fmt: skip
                self.outputs[place], changed = self.outputs[place].index_copy(0, rows, solved), True
                self._add(place, trace.token_evaluations, trace.depth, len(rows), "polished")
            tokens = layer.restore(self.outputs[place])

    def _correction(self, layer: CausalLayer) -> Correction | None:
        guided = self.condition.guidance is not None
        return None if self.calibration is None else self.calibration.fit(layer).going_on(guided)

    def _add(self, place: int, token_evaluations: float, depth: int, samples: int, *flags: str) -> None:
        trace = self.traces[place]
        self.traces[place] = replace(
            trace,
            token_evaluations=trace.token_evaluations + token_evaluations * samples / len(self.latents),
            depth=trace.depth + depth,
            flags=tuple(dict.fromkeys((*trace.flags, *flags))),
        )
        self.laps.lap(place)


@torch.no_grad()
def certify(flow: CausalFlow, images: Tensor, latents: Tensor, labels: Tensor | None = None) -> Certificate:
    """How far samples are from the exact ones of their latents, estimated by one forward pass.

    The deviations are known where `harness calibrate` measured what certificates are to them. Samples that were
    guided, denoised, clipped or rounded have none.

    Args:
        images: (B, C, H, W), or what else `flow.encode` takes, as a decoder gave them.
        latents: (B, L, D) standard normal numbers that they were decoded from.
        labels: (B,) their classes, negative for none.

    Raises:
        HarnessError: no call inverts the flow's layers, or there are not as many images as latents.
    """
    require_certifiable(flow)
    if len(images) != len(latents):
        raise HarnessError(f"{len(images)} images cannot be samples of {len(latents)} latents")
    encoded, _ = flow.encode(images.to(flow.device, flow.dtype), labels)
    rms, largest = _norms(encoded - flow.scale_latents(latents.to(flow.device)))
    return Certificate(rms, largest, torch.zeros_like(rms, dtype=torch.bool), ratio_of(flow))


def ratio_of(flow: CausalFlow) -> Ratio | None:
    """What the certificates of a flow are to deviations; None where that was not measured."""
    found = find_calibration(flow)
    return None if found is None else found.ratio


def _norms(difference: Tensor) -> tuple[Tensor, Tensor]:
    """RMS and maximum of each sample of (B, L, D), (B,) each."""
    return difference.square().mean(dim=(1, 2)).sqrt(), difference.abs().amax(dim=(1, 2))


def certifiable(flow: CausalFlow) -> bool:
    """Whether one call inverts each layer: one with an `update` of its own is not known to be affine in its input."""
    return all(_behind(layer).update is CausalLayer.update for layer in flow.layers)


def require_certifiable(flow: CausalFlow) -> None:
    """Raise HarnessError where no call inverts the flow's layers."""
    if not certifiable(flow):
        raise HarnessError("layers of this flow define their own update: no call inverts them, so none certifies")


def _behind(layer: CausalLayer) -> type[CausalLayer]:
    return _behind(layer.layer) if isinstance(layer, LayerWrapper) else type(layer)
