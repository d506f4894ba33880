"""What a few Jacobi iterations leave of every layer and what that does to the sample, and the layers that SeJD keeps.

SeJD (arXiv 2505.24791, Algorithm 1) decodes one layer sequentially, the first. At the same cost, in network calls that
follow each other, another may be worth more: the one whose error, left where the stopping rule ends its iterations,
grows to the largest in the sample. `harness.fitting.selection` measures it once for a flow; here it is only read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from harness.decoders.stored import called, checkpoint_digest, stored
from harness.decoders.windows import calm
from harness.errors import CheckpointError, HarnessError
from harness.files import write_text
from harness.flows.protocols import CausalFlow
from harness.options import reason

SUFFIX = "-layers.json"


@dataclass(frozen=True)
class LayerErrors:
    """What Jacobi iteration from zeros leaves of one layer, its inputs exact.

    Args:
        residuals: infinity norm of the update over all samples, after 1, 2, ... iterations.
        errors: RMSE of the layer's outputs to the exact ones, after as many.
        gain: RMSE of the samples over that of the layer's outputs, all layers after it decoded sequentially.
    """

    layer: int
    block: int
    residuals: tuple[float, ...]
    errors: tuple[float, ...]
    gain: float


@dataclass(frozen=True)
class Choice:
    """One layer at a tau: iterated, and what keeping it sequential is worth and costs.

    Args:
        iterations: after which the stopping rule ends.
        error_rms: that they leave in the layer's outputs.
        deviation: RMSE of the samples that this causes.
        calls: network calls in a row that keeping it sequential adds.
        kept: whether it is kept sequential.
    """

    layer: int
    block: int
    iterations: int
    error_rms: float
    gain: float
    deviation: float
    calls: int
    kept: bool


@dataclass(frozen=True)
class Selection:
    """The layers of one checkpoint, in decoding order.

    Args:
        samples: how many exactly decoded samples it was measured on.
    """

    digest: str
    samples: int
    num_tokens: int
    layers: tuple[LayerErrors, ...]

    def choices(self, tau: float, max_iterations: int | None = None) -> list[Choice]:
        """Every layer at a tau, in decoding order.

        Kept are, from the largest deviation down, the layers that fit: together they add no more network calls in a row
        than the one that adds the most. That is one layer, as in the paper, unless iterating is about as long.
        """
        found = []
        for of in self.layers:
            ends = (n for n, norm in enumerate(of.residuals, 1) if calm(norm, tau) or n == max_iterations)
            iterations = next(ends, len(of.residuals))
            error = of.errors[iterations - 1]
            calls = self.num_tokens - 1 - iterations
            found.append(Choice(of.layer, of.block, iterations, error, of.gain, of.gain * error, calls, kept=False))
        left, kept = max(choice.calls for choice in found), set()
        for choice in sorted(found, key=lambda choice: -choice.deviation):  # stable: the first of equals
            if choice.calls <= left:
                kept.add(choice.layer)
                left -= choice.calls
        return [Choice(**{**asdict(choice), "kept": choice.layer in kept}) for choice in found]

    def sequential(self, tau: float, max_iterations: int | None = None) -> tuple[int, ...]:
        """Places in decoding order of the layers kept sequential."""
        return tuple(choice.layer for choice in self.choices(tau, max_iterations) if choice.kept)

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> Selection:
        """Read what `save` wrote."""
        try:
            found = TypeAdapter(cls).validate_json(path.read_bytes())
            if not found.layers or any(not of.errors or len(of.errors) != len(of.residuals) for of in found.layers):
                raise ValueError("a layer has no errors")
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
    found = Selection.load(path)
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
