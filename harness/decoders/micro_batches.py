"""Staying under a bound on memory: a layer is solved a few samples at a time, with the results of the whole batch.

Samples that do not depend on each other are solved in micro-batches. Where a stopping rule looks at the whole batch
they must stay together, iteration by iteration; then each network call is made on a few samples at a time, so that the
activations of these alone are alive at once, while keys and values of all of them are kept.

How many that are is arithmetic, not trial: bytes are counted, weights and buffers inside the libraries' own kernels
apart, by watching the tensors of one call on one sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.decoders.trace import LayerTrace
from harness.errors import HarnessError
from harness.flows.modules import LayerWrapper
from harness.flows.protocols import CausalLayer, Condition, Explained

WALK, SOLVER, UPDATE = 3, 3, 8
"""(B, L, D) tensors that the walk holds, and a solver besides, its look for infinities included; tensors of a window's
size that an update takes."""

INDEX = 8
"""Bytes of a number that says which sample or token; there are as many as samples and tokens."""

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

Solve = Callable[[CausalLayer, Tensor, Condition], tuple[Tensor, LayerTrace]]


@dataclass(frozen=True)
class Footprint:
    """What solving a layer takes in memory, as its decoder knows it.

    Args:
        window: the most tokens of one network call.
        cached: whether keys and values are kept.
        shared: whether a sample may depend on the others of its batch, as where one stopping rule looks at all.
        beside: numbers for each token of a window that what is done with a call's answer takes besides.
    """

    window: int
    cached: bool = True
    shared: bool = True
    beside: int = 0


SEQUENTIAL = Footprint(window=1, shared=False)
"""Of the exact baseline, whatever decoder it is part of."""


@dataclass(frozen=True)
class Plan:
    """How many samples are solved together, and how many of these are in a network call."""

    together: int
    in_call: int


def parse_bytes(text: Any) -> int:
    """A number of bytes, or a text such as ``"2GB"`` or ``"512 MiB"``.

    Example:
        >>> parse_bytes("1.5 GB"), parse_bytes("2KiB"), parse_bytes(4096)
        (1500000000, 2048, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text).strip())
    unit = UNITS.get((match[2] or "B").upper()) if match and not isinstance(text, bool) else None
    if match is None or unit is None or (size := int(float(match[1]) * unit)) < 1:
        raise HarnessError(f"max_memory must be a number of bytes or a text such as '2GB' or '512MiB', not {text!r}")
    return size


def _readable(text: Any) -> Any:
    parse_bytes(text)
    return text


Bytes = Annotated[int | str, BeforeValidator(_readable)]
"""An option that `parse_bytes` reads."""


class MicroBatches:
    """How the layers of one batch are solved so that no more than so many bytes are alive at once, weights apart.

    Args:
        latents: (B, L, D), or anything of that shape, dtype and device.
    """

    def __init__(self, bound: int, latents: Tensor, condition: Condition) -> None:
        self.bound, self._latents, self._condition = bound, latents, condition
        self._plans: dict[tuple[int, Footprint], Plan] = {}

    def plan(self, layer: CausalLayer, footprint: Footprint) -> None:
        """Find out how a layer is solved; that takes one network call on one sample.

        Raises:
            HarnessError: the bound is too little for even one sample at a time.
        """
        if (layer.number, footprint) in self._plans:
            return
        batch, length, dim = self._latents.shape
        token, window = dim * self._latents.element_size(), min(footprint.window, length - 1)
        cache, call = bytes_of_one(layer, self._latents[:1], self._condition, window, footprint.cached)
        beside = footprint.beside * window * self._latents.element_size()
        state = SOLVER * length * token + UPDATE * window * token + cache + beside
        left = self.bound - WALK * batch * length * token - INDEX * (batch + length)
        if footprint.shared:
            together, in_call, least = batch, (left - batch * state) // max(call, 1), batch * state + call
        else:
            in_call, least = left // (state + call), state + call
            together = in_call
        if in_call < 1:
            raise HarnessError(
                f"max_memory of {self.bound:,} bytes is too little: layer {layer.number} takes "
                f"{self.bound - left + least:,} for {batch} samples"
                + (", which stop together, even if" if footprint.shared else " if")
                + " the network is called on one at a time"
            )
        self._plans[layer.number, footprint] = Plan(min(together, batch), min(in_call, batch))

    def within(self, solve: Solve, footprint: Footprint) -> Solve:
        """`solve` as it was planned for this footprint: the same results, fewer bytes."""

        def solve_within(layer: CausalLayer, inputs: Tensor, condition: Condition) -> tuple[Tensor, LayerTrace]:
            planned = self._plans[layer.number, footprint]
            if planned.in_call == len(inputs):
                return solve(layer, inputs, condition)
            if footprint.shared:
                return solve(PartedLayer(layer, planned.in_call, inputs.device), inputs, condition)
            outputs, traces = torch.empty_like(inputs), []
            parts = torch.arange(len(inputs), device=inputs.device).split(planned.together)
            for rows, part, into in zip(parts, *(x.split(planned.together) for x in (inputs, outputs)), strict=True):
                solved, trace = solve(layer, part, condition.select(rows))
                into.copy_(solved)
                traces.append(trace)
            return outputs, merged(traces, [len(rows) for rows in parts])

        return solve_within


def merged(traces: Sequence[LayerTrace], sizes: Sequence[int]) -> LayerTrace:
    """One trace of a layer that was solved in micro-batches of these sizes: the slowest of them, and all they cost."""
    residuals = zip_longest(*(trace.residuals for trace in traces), fillvalue=0.0)
    return replace(
        traces[0],
        iterations=max(trace.iterations for trace in traces),
        converged=all(trace.converged for trace in traces),
        residuals=[max(norms, key=lambda norm: math.inf if math.isnan(norm) else norm) for norms in residuals],
        token_evaluations=sum(trace.token_evaluations * size for trace, size in zip(traces, sizes, strict=True))
        / sum(sizes),
        depth=max(trace.depth for trace in traces),
        flags=tuple(dict.fromkeys(flag for trace in traces for flag in trace.flags)),
    )


class PartedLayer(LayerWrapper):
    """A layer whose network sees a few samples at a time."""

    def __init__(self, layer: CausalLayer, size: int, device: torch.device) -> None:
        super().__init__(layer)
        self._size, self._device = size, device

    def in_dtype(self, dtype: torch.dtype) -> CausalLayer:
        return PartedLayer(self.layer.in_dtype(dtype), self._size, self._device)

    def new_cache(self, batch: int, condition: Condition) -> _PartedCache:
        rows = torch.arange(batch, device=self._device).split(self._size)
        conditions = [condition.select(part) for part in rows] if len(rows) > 1 else [condition]
        caches = [self.layer.new_cache(len(part), own) for part, own in zip(rows, conditions, strict=True)]
        return _PartedCache(caches, conditions)

    def affine(
        self, tokens: Tensor, cache: _PartedCache | None, start: int, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        outputs = torch.empty((2, *tokens.shape), dtype=tokens.dtype, device=tokens.device)
        for here, own, under in self._parts(len(tokens), cache, condition):
            outputs[0, here], outputs[1, here] = self.layer.affine(tokens[here], own, start, under)
        return outputs[0], outputs[1]

    def update(
        self, inputs: Tensor, tokens: Tensor, cache: _PartedCache | None, start: int, condition: Condition
    ) -> Tensor:
        outputs = torch.empty_like(inputs[:, start + 1 : start + 1 + tokens.shape[1]])
        for here, own, under in self._parts(len(tokens), cache, condition):
            outputs[here] = self.layer.update(inputs[here], tokens[here], own, start, under)
        return outputs

    def explain(
        self, inputs: Tensor, tokens: Tensor, cache: _PartedCache | None, start: int, condition: Condition
    ) -> Explained:
        known = [
            self.layer.explain(inputs[here], tokens[here], own, start, under)
            for here, own, under in self._parts(len(tokens), cache, condition)
        ]
        return Explained(*(torch.cat(part) for part in zip(*known, strict=True)))

    def _parts(
        self, batch: int, cache: _PartedCache | None, condition: Condition
    ) -> Iterator[tuple[slice, Any, Condition]]:
        """The samples of each part, with their own cache and condition."""
        for i, first in enumerate(range(0, batch, self._size)):
            here = slice(first, min(first + self._size, batch))
            if cache is not None:
                yield here, cache.parts[i], cache.conditions[i]
            elif batch <= self._size:
                yield here, None, condition
            else:
                yield here, None, condition.select(torch.arange(first, here.stop, device=self._device))


class _PartedCache:
    def __init__(self, parts: list[Any], conditions: list[Condition]) -> None:
        self.parts, self.conditions = parts, conditions

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def bytes_of_one(
    layer: CausalLayer, inputs: Tensor, condition: Condition, window: int, cached: bool
) -> tuple[int, int]:
    """What one sample takes: bytes that its cache keeps, and the most alive besides in a call of `window` tokens.

    Found by a call on the first window of `inputs`, (1, L, D) whose values do not matter, and, where there is a prefix
    to look back at, on windows up to the last: a call may grow with its prefix, or with its place.
    """
    one = condition.select(torch.zeros(1, dtype=torch.long, device=inputs.device))
    last = inputs.shape[1] - 1 - window
    with LiveBytes() as live:
        cache = layer.new_cache(1, one) if cached else None
        kept = live.bytes
        for start in sorted({*range(0, last, max(last // 8, 1)), last}) if cached else [0]:
            layer.update(inputs, inputs[:, start : start + window], cache, start, one)
    return kept, live.peak - kept


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside and are alive, and the most there were: `peak`.

    Deterministic: it sees tensors, not what an allocator keeps or a kernel uses inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._before: dict[int, StorageWeakRef] = {}  # weights, and whatever else was there; never reused while held
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode whole functions arrive here: what they are made of is what allocates
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        self._before |= {one._cdata: StorageWeakRef(one) for one in self._unknown((args, kwargs))}
        outputs = func(*args, **kwargs)
        if made := {one._cdata: (StorageWeakRef(one), one.nbytes()) for one in self._unknown(outputs)}:
            self._made |= made
            self.peak = max(self.peak, self.bytes)
        return outputs

    @property
    def bytes(self) -> int:
        self._made = {key: (ref, size) for key, (ref, size) in self._made.items() if not ref.expired()}
        return sum(size for _, size in self._made.values())

    def _unknown(self, tensors: Any) -> list[torch.UntypedStorage]:
        storages = [leaf.untyped_storage() for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
        return [one for one in storages if one._cdata not in self._before and one._cdata not in self._made]
