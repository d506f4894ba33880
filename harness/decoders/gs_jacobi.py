"""Gauss-Seidel-Jacobi decoding: blocks of tokens one after the other, Jacobi iteration inside a block."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from harness.decoders.calibration import LayerMetrics, calibration_of, find_calibration
from harness.decoders.decoder import CALIBRATION, Count, Decoder, LayerTrace, Missing, decoders
from harness.decoders.jacobi import FITTED, Initial, JacobiDecoder
from harness.decoders.solver import solve_sequential
from harness.decoders.windows import Blocks, Windows
from harness.errors import HarnessError
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, ShowsOutputWeights
from harness.flows.tap import untapped


@dataclass(frozen=True)
class Strategy:
    """One entry per layer, in decoding order, for a flow of as many layers.

    Args:
        blocks: G, the blocks of a layer: 0 decodes it sequentially, 1 is plain Jacobi.
        max_iterations: J, the cap on the iterations of a block.
    """

    blocks: tuple[int, ...]
    max_iterations: tuple[int | None, ...]
    initial: tuple[str, ...]


def _published(blocks: list[int], max_iterations: list[int], guesses: list[int]) -> Strategy:
    return Strategy(tuple(blocks), tuple(max_iterations), tuple(("input", "zeros")[guess] for guess in guesses))


STRATEGIES: dict[str, Strategy] = {
    "afhq": _published([8, 1, 1, 1, 1, 1, 1, 1], [32, 10, 10, 10, 10, 10, 10, 10], [0, 0, 0, 0, 0, 1, 1, 0]),
    "imagenet128": _published([1, 8, 1, 1, 1, 1, 1, 1], [10, 32, 10, 10, 10, 10, 10, 10], [0, 1, 0, 0, 0, 0, 1, 0]),
    "imagenet64": _published([1, 8, 1, 1, 1, 1, 1, 8], [20, 32, 20, 20, 20, 20, 20, 32], [0, 1, 0, 0, 1, 0, 1, 1]),
    "imagenet64-cond": _published([8, 1, 1, 1, 1, 1, 1, 0], [13, 6, 6, 6, 6, 6, 6, 1], [1, 0, 0, 0, 0, 1, 1, 1]),
}
"""The strategies published for flows of 8 layers, by dataset (arXiv 2505.12849, Sec. 5 and its code).

Their stopping rule is ``norm="frobenius"``, ``tau=1e-8``, ``clamp=3.0``, and they are left at the cap,
``fallback="non-finite"``.
"""


AUTO = "auto"
TOUGH, SIMPLE = (8, 32), (1, 10)
"""Blocks G and iterations J of tough and of simple layers, as published for AFHQ and ImageNet 128."""


def automatic(metrics: Sequence[LayerMetrics]) -> Strategy:
    """The paper's choice from its metrics: blocks for the layers whose CRM dominates, and each layer's better guess."""
    settings = [TOUGH if of.tough else SIMPLE for of in metrics]
    return Strategy(
        tuple(blocks for blocks, _ in settings), tuple(cap for _, cap in settings), tuple(of.guess for of in metrics)
    )


Whole = Annotated[int, Field(ge=0, strict=True)]
"""A whole number from 0."""


@decoders.register("gs-jacobi")
@dataclass(kw_only=True)
class GaussSeidelJacobi(JacobiDecoder):
    """Gauss-Seidel over blocks of tokens, Jacobi inside a block (GS-Jacobi, arXiv 2505.12849, Sec. 4).

    A block stops by itself, on the norm of its own update. `blocks`, `max_iterations` and `initial` hold for every
    layer, or are lists with one entry per layer in decoding order.

    Args:
        blocks: G, the blocks of a layer: 0 decodes it sequentially, 1 is plain Jacobi.
        max_iterations: J, the cap on the iterations of a block; None for as many as make it exact.
        strategy: a published setting of all three, by a name in `STRATEGIES`, in place of them; ``"auto"`` chooses them
            from the paper's metrics, see `automatic`.
        clamp: bound on the magnitude of iterates, against overflow; the paper's code uses 3. A clamped decode is not
            exact where the exact sample goes beyond.
    """

    blocks: Whole | tuple[Whole, ...] = 8
    max_iterations: Count | tuple[Count | None, ...] | None = None  # type: ignore[assignment]
    initial: Initial | tuple[Initial, ...] = "zeros"  # type: ignore[assignment]
    strategy: Literal["auto", "afhq", "imagenet128", "imagenet64", "imagenet64-cond"] | None = None
    clamp: Annotated[float, Field(gt=0)] | None = None

    @property
    def reads_fits(self) -> bool:
        """When something fitted is asked for, in any layer, or the metrics; no published strategy does."""
        return self.strategy == AUTO or self._fitted

    @property
    def _fitted(self) -> bool:
        return self.correction is not None or (not self.strategy and FITTED in _entries(self.initial))

    def missing(self, flow: CausalFlow, batch: int) -> list[Missing]:
        if self.strategy == AUTO:
            _require_weights(flow)
            found = find_calibration(flow, self.calibration)
            return [CALIBRATION] if found is None or found.metrics is None else []
        return super().missing(flow, batch)

    def fits_digest(self, flow: CausalFlow, batch: int) -> str | None:
        if self.strategy != AUTO:
            return super().fits_digest(flow, batch)
        settings = str(self._automatic(flow)) + ((super().fits_digest(flow, batch) or "") if self._fitted else "")
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def _automatic(self, flow: CausalFlow) -> Strategy:
        _require_weights(flow)
        metrics = calibration_of(flow, self.calibration).metrics
        if metrics is None:
            raise HarnessError("this calibration holds no metrics for strategy 'auto'; run `harness calibrate` again")
        return automatic(metrics)

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        """As it is, once every list has an entry for every layer; with the strategy ``"auto"``, with its lists.

        Raises:
            HarnessError: the metrics are not known, or cannot be of this flow; or a list, or a published strategy, that
                is not as long as the flow has layers.
        """
        if self.strategy == AUTO:
            return replace(self, strategy=None, **vars(self._automatic(flow))).bind(flow, batch)
        for name in ("blocks", "max_iterations", "initial"):
            value = getattr(self._settings, name)
            if isinstance(value, tuple) and len(value) != flow.num_layers:
                raise HarnessError(
                    f"{name} of '{self.strategy or 'gs-jacobi'}' has {len(value)} entries, "
                    f"but the flow has {flow.num_layers} layers"
                )
        return super().bind(flow, batch)

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        windows, initial = self.windows(layer), _entry(self._settings.initial, layer)
        if windows is None:
            return solve_sequential(layer, inputs, condition)
        return self.solve_windows(layer, inputs, condition, windows, initial=initial, clamp=self.clamp)

    def windows(self, layer: CausalLayer) -> Windows | None:
        blocks = _entry(self._settings.blocks, layer)
        if not blocks:
            return None
        size, cap = math.ceil(layer.num_tokens / blocks), _entry(self._settings.max_iterations, layer)
        return Blocks(size, self.tau, cap, mode="jacobi" if blocks == 1 else "gs-jacobi")

    @property
    def _settings(self) -> GaussSeidelJacobi | Strategy:
        if self.strategy == AUTO:
            raise HarnessError("what the strategy is, is known only once the decoder is bound to a flow")
        return STRATEGIES[self.strategy] if self.strategy else self


def _entries(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _entry(value: Any, layer: CausalLayer) -> Any:
    return value[layer.number - 1] if isinstance(value, tuple) else value


def _require_weights(flow: CausalFlow) -> None:
    if not all(isinstance(layer, ShowsOutputWeights) for layer in untapped(flow).layers):
        raise HarnessError("CRM needs the last linear map of a layer's network, which layers of this flow do not show")
