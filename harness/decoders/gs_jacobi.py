"""Gauss-Seidel-Jacobi decoding: blocks of tokens one after the other, Jacobi iteration inside a block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from harness.decoders.crm import SIMPLE, TOUGH, LayerMetrics, metrics_of
from harness.decoders.decoder import Decoder, LayerTrace, decoders
from harness.decoders.jacobi import FITTED, JacobiDecoder, check_iteration
from harness.decoders.sequential import solve_sequential
from harness.decoders.windows import Blocks, Schedule
from harness.errors import HarnessError, unknown
from harness.flows.precision import half_dtype
from harness.flows.protocols import CausalFlow, CausalLayer, Condition
from harness.flows.tap import untapped


@dataclass(frozen=True)
class Strategy:
    """One entry per layer, in decoding order, for a flow of as many layers.

    Args:
        blocks: G, the blocks of a layer: 0 decodes it sequentially, 1 is plain Jacobi.
        max_iterations: J, the cap on the iterations of a block.
        initial: where a layer starts.
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


def automatic(metrics: Sequence[LayerMetrics]) -> Strategy:
    """The paper's choice from its metrics: blocks for the layers whose CRM dominates, and each layer's better guess."""
    settings = [TOUGH if of.tough else SIMPLE for of in metrics]
    return Strategy(
        tuple(blocks for blocks, _ in settings), tuple(cap for _, cap in settings), tuple(of.guess for of in metrics)
    )


@decoders.register("gs-jacobi")
@dataclass(kw_only=True)
class GaussSeidelJacobi(JacobiDecoder):
    """Gauss-Seidel over blocks of tokens, Jacobi inside a block (GS-Jacobi, arXiv 2505.12849, Sec. 4).

    A block stops by itself, on the norm of its own update. `blocks`, `max_iterations` and `initial` hold for every
    layer, or are lists with one entry per layer in decoding order.

    Args:
        blocks: G, the blocks of a layer: 0 decodes it sequentially, 1 is plain Jacobi.
        max_iterations: J, the cap on the iterations of a block; None for as many as make it exact.
        initial: as for any Jacobi decoder.
        strategy: a published setting of all three, by a name in `STRATEGIES`, in place of them; ``"auto"`` chooses them
            from the paper's metrics, see `automatic`.
        clamp: bound on the magnitude of iterates, against overflow; the paper's code uses 3. A clamped decode is not
            exact where the exact sample goes beyond.
    """

    blocks: Any = 8
    max_iterations: Any = None
    initial: Any = "zeros"
    strategy: str | None = None
    clamp: float | None = None

    def __post_init__(self) -> None:
        Decoder.__post_init__(self)
        if self.network_dtype is not None:
            half_dtype(self.network_dtype)
        if self.strategy not in (None, AUTO, *STRATEGIES):
            raise unknown("strategy", str(self.strategy), [AUTO, *STRATEGIES])
        if self.clamp is not None and not self.clamp > 0:
            raise HarnessError(f"clamp must be above 0, not {self.clamp}")
        for name in ("blocks", "max_iterations", "initial"):
            if isinstance(value := getattr(self, name), list):  # as TOML and JSON have them
                setattr(self, name, tuple(value))
        for max_iterations, initial in itertools.product(_entries(self.max_iterations), _entries(self.initial)):
            check_iteration(initial, self.norm, self.scope, max_iterations)
        for blocks in _entries(self.blocks):
            if not isinstance(blocks, int) or blocks < 0:
                raise HarnessError(f"blocks must be a number from 0, not {blocks!r}")

    def bind(self, flow: CausalFlow, batch: int) -> Decoder:
        """As it is, once every list has an entry for every layer; with the strategy ``"auto"``, with its lists.

        Raises:
            HarnessError: the metrics cannot be measured on this flow; or a list, or a published strategy, that is not
                as long as the flow has layers.
        """
        if self.strategy == AUTO:
            return replace(self, strategy=None, **vars(automatic(metrics_of(untapped(flow))))).bind(flow, batch)
        for name in ("blocks", "max_iterations", "initial"):
            value = getattr(self._settings, name)
            if isinstance(value, tuple) and len(value) != flow.num_layers:
                raise HarnessError(
                    f"{name} of '{self.strategy or 'gs-jacobi'}' has {len(value)} entries, "
                    f"but the flow has {flow.num_layers} layers"
                )
        return super().bind(flow, batch)

    def solve(self, layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
        """Solve the layer by its own entries."""
        schedule, initial = self.schedule(layer), _entry(self._settings.initial, layer)
        if schedule is None:
            return solve_sequential(layer, inputs, condition)
        return self.solve_schedule(layer, inputs, condition, schedule, initial=initial, clamp=self.clamp)

    def schedule(self, layer: CausalLayer) -> Schedule | None:
        """The layer's blocks."""
        blocks = _entry(self._settings.blocks, layer)
        if not blocks:
            return None
        size, cap = math.ceil(layer.num_tokens / blocks), _entry(self._settings.max_iterations, layer)
        return Blocks(size, self.tau, cap, mode="jacobi" if blocks == 1 else "gs-jacobi")

    @property
    def needs_calibration(self) -> bool:
        """Whether something fitted is asked for, in any layer; no strategy does."""
        return FITTED in (*(() if self.strategy else _entries(self.initial)), self.correction)

    @property
    def _settings(self) -> GaussSeidelJacobi | Strategy:
        if self.strategy == AUTO:
            raise HarnessError("what the strategy is, is known only once the decoder is bound to a flow")
        return STRATEGIES[self.strategy] if self.strategy else self


def _entries(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _entry(value: Any, layer: CausalLayer) -> Any:
    return value[layer.number - 1] if isinstance(value, tuple) else value
