"""What a few Jacobi iterations leave of every layer and what that does to the sample, and the layers that SeJD keeps.

SeJD (arXiv 2505.24791, Algorithm 1) decodes one layer sequentially, the first. At the same cost, in network calls that
follow each other, another may be worth more: the one whose error, left where the stopping rule ends its iterations,
grows to the largest in the sample. `harness.fitting.selection` measures it once for a flow; here it is only read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean

from pydantic import TypeAdapter, ValidationError

from harness.decoders.stored import called, checkpoint_digest, read_once, stored
from harness.decoders.windows import calm
from harness.errors import CheckpointError, HarnessError
from harness.files import write_text
from harness.flows.protocols import CausalFlow
from harness.options import Count, NonNegative, reason

SUFFIX = "-layers.json"


@dataclass(frozen=True)
class LayerErrors:
    """What Jacobi iteration from zeros leaves of one layer, its inputs exact.

    Args:
        residuals: infinity norm of each sample's update, after 1, 2, ... iterations.
        errors: each sample's mean squared error in the layer's outputs, after as many.
        gain: RMSE of the samples over that of the layer's outputs, all layers after it decoded sequentially.
    """

    layer: int
    block: int
    residuals: tuple[tuple[NonNegative, ...], ...]
    errors: tuple[tuple[NonNegative, ...], ...]
    gain: NonNegative

    def ends(self, tau: float, batch: int, max_iterations: int | None) -> list[tuple[int, float]]:
        """For every sample, decoded in such batches: its iterations, and the mean squared error that they leave."""
        found, samples = [], len(self.residuals[0])
        for first in range(0, samples, batch):
            rows = range(first, min(first + batch, samples))
            ends = (
                n for n, norms in enumerate(self.residuals, 1)
                if n == max_iterations or all(calm(norms[row], tau) for row in rows)
            )  # fmt: skip
            iterations = next(ends, len(self.residuals))
            found += [(iterations, self.errors[iterations - 1][row]) for row in rows]
        return found


@dataclass(frozen=True)
class Choice:
    """One layer at a tau and batch size: iterated, and what keeping it sequential is worth and costs.

    Args:
        iterations: after which the stopping rule ends, in the mean.
        error_rms: that they leave in the layer's outputs.
        deviation: RMSE of the samples that this causes.
        calls: network calls in a row that keeping it sequential adds.
        kept: whether it is kept sequential.
    """

    layer: int
    block: int
    iterations: float
    error_rms: float
    gain: float
    deviation: float
    calls: float
    kept: bool


@dataclass(frozen=True)
class Selection:
    """The layers of one checkpoint, in decoding order.

    Args:
        samples: how many exactly decoded ones it was measured on.
    """

    digest: str
    samples: Count
    num_tokens: Count
    layers: tuple[LayerErrors, ...]

    def choices(self, tau: float, batch: int, max_iterations: int | None = None) -> list[Choice]:
        """Every layer at a tau and batch size, in decoding order.

        Kept are, from the largest deviation down, the layers that fit: together they add no more network calls in a row
        than the one that adds the most. That is one layer, as in the paper, unless iterating is about as long.
        """
        found = []
        for of in self.layers:
            iterations, squares = map(fmean, zip(*of.ends(tau, batch, max_iterations), strict=True))
            error, calls = sqrt(squares), self.num_tokens - 1 - iterations
            found.append(Choice(of.layer, of.block, iterations, error, of.gain, of.gain * error, calls, kept=False))
        left, kept = max(choice.calls for choice in found), set()
        for choice in sorted(found, key=lambda choice: -choice.deviation):  # stable: the first of equals
            if choice.calls <= left:
                kept.add(choice.layer)
                left -= choice.calls
        return [replace(choice, kept=choice.layer in kept) for choice in found]

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> Selection:
        """Read what `save` wrote."""
        try:
            found = TypeAdapter(cls).validate_json(path.read_bytes())
            if not all(len(of.errors) == len(of.residuals) > 0 for of in found.layers):
                raise ValueError("a layer has no errors")
            if any(len(row) != found.samples for of in found.layers for row in (*of.errors, *of.residuals)):
                raise ValueError(f"a row is not of {found.samples} samples")
        except (ValidationError, ValueError) as error:
            raise CheckpointError(f"'{path}' does not say what layers leave: {reason(error)}; remove it") from error
        return found


def find_selection(flow: CausalFlow) -> Selection | None:
    """What was measured of a flow, or None."""
    if flow.source is None:
        return flow.fits.get(Selection)
    path = stored(flow.source, SUFFIX)
    if path is None:
        return None
    found = read_once(flow, path, Selection.load)
    if found.digest != checkpoint_digest(flow.source) or len(found.layers) != flow.num_layers:
        raise CheckpointError(f"'{path}' was measured on another checkpoint than '{flow.source}'")
    return found


def selection_of(flow: CausalFlow) -> Selection:
    """As `find_selection`; a `HarnessError` where nothing was measured."""
    found = find_selection(flow)
    if found is None:
        raise HarnessError(
            f"which layers of {flow.source or 'this flow'} to keep sequential is not measured yet: run `harness "
            f"calibrate {called(flow)}`, or call harness.fitting.prepare(decoder, flow, batch)"
        )
    return found
