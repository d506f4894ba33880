"""What is fitted to a flow once, so that decoding it needs fewer iterations: guesses and corrections.

Both are linear causal maps (see `harness.decoders.maps`), fitted by ridge regression on exactly decoded samples (see
`harness.fitting.calibrate`); here they are only read. Long sequences have few lags and weights that all positions
share; short ones look at all predecessors, with weights for every pair of positions.

*Guess*: ``x[l] ~ bias_c[l] + sum_k A_k z_in[l - k]``, lags k from 0, with a bias for every class c and position l; in a
short sequence A, too, is the class's own.

*Correction*: with F the Jacobi map and r = F(x) - x its residual, the error that F(x) still has is J (I - J)^-1 r to
first order, and J is strictly causal; so ``e[l] ~ sum_k A_k r[l - k]`` with lags k from 1 and without bias. Where r is
0 on a prefix nothing is added to it, nor to the token behind it: the fixed point and the exact prefix stay as they are.

*Learned correction*: a linear one and, gated by the hidden state, what that leaves (`harness.decoders.learned`),
for each of the first iterations from the guess; a linear one alone for those after them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.decoders.corrections import GatedCorrection, LinearCorrection
from harness.decoders.learned import GatedMap
from harness.decoders.maps import CausalMap, Guess, causal_map
from harness.decoders.solver import Correction
from harness.decoders.stored import called, checkpoint_digest, read_once, stored
from harness.decoders.trace import Ratio
from harness.errors import CheckpointError, HarnessError
from harness.files import make_folder, read_safetensors, replacing
from harness.flows.modules import nonfinite
from harness.flows.protocols import CausalFlow, CausalLayer
from harness.options import reason

FORMAT = "5"
READABLE = ("3", FORMAT)
"""A file of format 3 has no learned corrections and no ratio of certificates; in 4 the former were of another form."""
SUFFIX = ".safetensors"
Lags = tuple[int, ...] | None
Hops = list[tuple[tuple[int, ...], int]]
"""Lags and hops of each learned correction of a layer."""


@dataclass(frozen=True)
class LayerMetrics:
    """How tough a layer is for Jacobi iteration (arXiv 2505.12849); see `harness.fitting.crm`.

    Args:
        share: of the flow's summed CRM.
        igm: initial guessing metric of each guess, ``"input"`` and ``"zeros"``.
    """

    layer: int
    block: int
    crm: float
    share: float
    tough: bool
    igm: dict[str, float]

    @property
    def guess(self) -> str:
        """The guess that leaves less."""
        return min(self.igm, key=lambda name: self.igm[name])


class LayerFit(nn.Module):
    """What was fitted to one layer.

    Args:
        guess: of the layer's outputs, from its inputs and classes.
        corrections: one per iteration, all of one kind; the last one also stands for the iterations after it.
        learned: one per iteration from the guess; none where nothing was learned or nothing gained by it.
        beside: the linear ones of those iterations, and the one for all after them; none where nothing was learned.
    """

    corrections: Any  # a ModuleList, which cannot say of what
    learned: Any
    beside: Any

    def __init__(
        self,
        guess: Guess,
        corrections: Sequence[CausalMap],
        learned: Sequence[GatedMap] = (),
        beside: Sequence[CausalMap] = (),
    ) -> None:
        super().__init__()
        if len({fitted.lags for fitted in (*corrections, *beside)}) != 1 or not corrections:
            raise ValueError("a layer has no corrections of one kind")
        if not all(fitted.strictly_causal for fitted in (*corrections, *beside)):
            raise ValueError("a correction is not a strictly causal map")
        if len(beside) != (len(learned) + 1 if learned else 0):
            raise ValueError("learned corrections need a linear one each, and one for the iterations after them")
        self.guess, self.corrections = guess, nn.ModuleList(corrections)
        self.learned, self.beside = nn.ModuleList(learned), nn.ModuleList(beside)

    @property
    def linear_tensors(self) -> list[Tensor]:
        return [self.guess.map.weight, self.guess.bias, *(fitted.weight for fitted in self.corrections)]

    @property
    def learned_tensors(self) -> list[Tensor]:
        return [*self.learned.state_dict().values(), *(fitted.weight for fitted in self.beside)]

    @property
    def linear(self) -> Correction:
        """Every token by the map of its own number of updates."""
        return LinearCorrection(list(self.corrections))

    @property
    def gated(self) -> Correction:
        """Every token by what was learned for its own number of updates; linear where nothing was."""
        return GatedCorrection(list(self.learned), LinearCorrection(list(self.beside))) if self.learned else self.linear

    def going_on(self, guided: bool) -> Correction:
        """For further iterations of what was decoded: the last one each time, learned or, under guidance, linear."""
        linear = LinearCorrection(list(self.corrections)[-1:])
        if guided or not self.learned:
            return linear
        beside = LinearCorrection(list(self.beside)[-2:-1])
        return GatedCorrection(list(self.learned)[-1:], beside, lasting=True)


class Calibration(nn.Module):
    """The fits of all layers of one checkpoint, in decoding order.

    Args:
        samples: how many exactly decoded samples they were fitted on.
        metrics: one per layer, or None where layers do not show their output weights.
        complete: whether learned corrections were tried for; a layer that gains nothing by them has none.
        ratio: what certificates are to deviations; None where that was not measured.
    """

    layers: Any  # a ModuleList of `LayerFit`

    def __init__(
        self,
        digest: str,
        layers: Sequence[LayerFit],
        samples: int,
        metrics: list[LayerMetrics] | None = None,
        complete: bool = False,
        ratio: Ratio | None = None,
    ) -> None:
        super().__init__()
        self.digest, self.samples, self.metrics, self.complete, self.ratio = digest, samples, metrics, complete, ratio
        self.layers = nn.ModuleList(layers)

    def fit(self, layer: CausalLayer) -> LayerFit:
        return self.layers[layer.number - 1]

    @property
    def content(self) -> str:
        """Digest of the linear fits."""
        return _digest(tensor for fit in self.layers for tensor in fit.linear_tensors)

    @property
    def learned_content(self) -> str:
        """Digest of all fits, the learned ones too."""
        return _digest(tensor for fit in self.layers for tensor in (*fit.linear_tensors, *fit.learned_tensors))

    def save(self, path: Path) -> None:
        """Write safetensors: the state dict, which half precision is enough for, and as metadata what it does not tell.

        What a number loses by that moved no deviation by more than a thousandth of itself; a number that is too large
        for it keeps all tensors as they are.
        """
        half = {name: tensor.half() for name, tensor in self.state_dict().items()}
        kept = self.state_dict() if nonfinite(half) else half
        tensors = {name: tensor.cpu().contiguous() for name, tensor in kept.items()}
        lags = [[fit.guess.map.lags, fit.corrections[0].lags] for fit in self.layers]
        facts = {"format": FORMAT, "digest": self.digest, "samples": str(self.samples), "lags": json.dumps(lags)}
        if self.complete:
            facts["learned"] = json.dumps([[[gated.lags, gated.hops] for gated in fit.learned] for fit in self.layers])
        facts |= {} if self.metrics is None else {"metrics": json.dumps([asdict(of) for of in self.metrics])}
        facts |= {} if self.ratio is None else {"certificate": json.dumps(asdict(self.ratio))}
        make_folder(path.parent)
        with replacing(path) as partial:
            save_file(tensors, partial, facts)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote."""
        try:
            kept, metadata = read_safetensors(path)
        except ValueError as error:
            raise CheckpointError(f"the calibration '{path}' cannot be read: {error}") from error
        tensors = {name: tensor.float() for name, tensor in kept.items()}
        if metadata.get("format") not in READABLE:
            raise CheckpointError(f"'{path}' is no calibration of format {FORMAT}; run `harness calibrate` again")
        try:
            lags = TypeAdapter(list[tuple[Lags, Lags]]).validate_json(metadata["lags"])
            metrics = TypeAdapter(list[LayerMetrics] | None).validate_json(metadata.get("metrics", "null"))
            ratio = TypeAdapter(Ratio | None).validate_json(metadata.get("certificate", "null"))
            learned = TypeAdapter(list[Hops]).validate_json(metadata.get("learned", json.dumps([[]] * len(lags))))
            layers = [
                _layer(tensors, f"layers.{place}", *kinds, hops)
                for place, (kinds, hops) in enumerate(zip(lags, learned, strict=True))
            ]
            if (broken := nonfinite(tensors)) is not None:
                raise ValueError(f"'{broken}' is not finite")
            return cls(metadata["digest"], layers, int(metadata["samples"]), metrics, "learned" in metadata, ratio)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"the calibration '{path}' is damaged: {reason(error)}; run `harness calibrate`"
            ) from error


def _digest(tensors: Iterable[Tensor]) -> str:
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.half().cpu().contiguous().numpy().tobytes())  # as a file keeps it
    return content.hexdigest()[:16]


def _layer(tensors: dict[str, Tensor], name: str, guess: Lags, corrections: Lags, learned: Hops) -> LayerFit:
    def maps(kind: str) -> list[CausalMap]:
        start, places = f"{name}.{kind}.", itertools.count()
        keys = itertools.takewhile(tensors.__contains__, (f"{start}{place}.weight" for place in places))
        return [causal_map(corrections, tensors[key]) for key in keys]

    causal = causal_map(guess, tensors[f"{name}.guess.map.weight"])
    gated = [_gated(tensors, f"{name}.learned.{place}.", *of) for place, of in enumerate(learned)]
    return LayerFit(Guess(causal, tensors[f"{name}.guess.bias"]), maps("corrections"), gated, maps("beside"))


def _gated(tensors: dict[str, Tensor], prefix: str, lags: tuple[int, ...], hops: int) -> GatedMap:
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    (width, twice), hidden = state["leave"].shape, state["gate.weight"].shape[1]
    gated = GatedMap(lags, hops, twice // 2, hidden, width)
    try:
        gated.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return gated.requires_grad_(False)


def find_calibration(flow: CausalFlow, given: Calibration | Path | None = None) -> Calibration | None:
    """The calibration of a flow, on the flow's device; None when nothing was fitted to it.

    Args:
        given: a calibration, or its file; None for the one that is stored for the flow, or kept with it.
    """
    if isinstance(given, Calibration):
        return _checked(given, flow.source)
    path = given if given is not None or flow.source is None else stored(flow.source, SUFFIX)
    if path is None:
        return flow.fits.get(Calibration)
    return read_once(flow, path, lambda path: _checked(Calibration.load(path), flow.source).to(flow.device, flow.dtype))


def calibration_of(flow: CausalFlow, given: Calibration | Path | None = None, learned: bool = False) -> Calibration:
    """As `find_calibration`, one for which learned corrections were tried where `learned`.

    Raises:
        HarnessError: nothing was fitted to the flow, or what was given does not fit it.
    """
    found = find_calibration(flow, given)
    if found is None or (learned and not found.complete):
        raise HarnessError(
            f"{'nothing is' if found is None else 'no learned correction is'} fitted to {flow.source or 'this flow'} "
            f"yet: run `harness calibrate {called(flow)}`, or call harness.fitting.prepare(decoder, flow, batch)"
        )
    return found


def _checked(calibration: Calibration, source: Path | None) -> Calibration:
    if source is not None and calibration.digest != checkpoint_digest(source):
        raise CheckpointError(f"this calibration was fitted to another checkpoint than '{source}'")
    return calibration
