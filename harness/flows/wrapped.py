"""Weights inside what training scripts save: below keys, behind the prefixes of wrappers, beside counters and averages.

No layout is guessed: whatever part of a checkpoint a family of flows recognises by the names of its tensors is a set of
weights.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from harness.errors import CheckpointError
from harness.flows.protocols import flows

State = dict[str, Tensor]
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that `DistributedDataParallel`, `torch.compile`, `AveragedModel` and their like put there."""
COUNTERS = {"n_averaged", "epoch", "step", "global_step", "iteration", "num_updates", "initted"}
"""Numbers that are kept as tensors beside weights and are none."""
OWN = "."
"""The key of weights that lie in a checkpoint below no key."""
DEEPEST = 6
"""Keys, or parts of a name, that weights may lie below."""
_EMA = re.compile(r"(?i)(?<![a-z])ema(?![a-z])")


@dataclass(frozen=True)
class Weights:
    """One set of weights of a checkpoint."""

    path: str  # the keys and the prefix that it lies below, as they are in the file
    state: State
    wrappers: tuple[str, ...]  # whose parts were taken off its names
    plain: bool  # the checkpoint is these tensors and nothing else


def weights_in(content: Mapping[Any, Any]) -> dict[str, Weights]:
    """All weights of what a file holds, tensors by name and dicts of such below keys; by key, without wrappers."""
    found: dict[str, Weights] = {}
    for weights in _found(content, (), set()):
        key = _bare(weights.path) or OWN
        found[weights.path if key in found else key] = weights
    return found


def choose(found: Mapping[str, Weights], content: Mapping[Any, Any], wanted: str | None) -> tuple[Weights, str | None]:
    """The weights wanted, and a sentence on where in the file they were, None where there is nothing else in it.

    Args:
        wanted: the key of the weights; by default the only ones, or the exponential moving average (EMA) among several.

    Raises:
        CheckpointError: there are several, or none with this key; the sentence goes on from the file's name.
    """
    keys = ", ".join(f"'{key}'" for key in sorted(found))
    averages = [key for key in found if _EMA.search(key)]
    if wanted is not None:
        chosen = [key for key in (wanted, _bare(wanted) or OWN) if key in found]
        if not chosen:
            raise CheckpointError(f"has no weights '{wanted[:80]}'; it has {keys}")
        why = f"uses the weights '{chosen[0]}', as chosen"
    elif len(found) == 1:
        chosen = list(found)
        why = "uses the only weights in it" + ("" if chosen == [OWN] else f", '{chosen[0]}'")
    elif len(averages) == 1:
        chosen = averages
        why = f"uses the weights '{chosen[0]}', an average (EMA), preferred among {keys} (--weights KEY chooses)"
    else:
        raise CheckpointError(f"has several sets of weights, {keys}; choose one with --weights KEY")
    weights = found[chosen[0]]
    if weights.plain:
        return weights, None
    off = f", without {' and '.join(weights.wrappers)} in their names" if weights.wrappers else ""
    aside = [name[:40] for name in map(str, content) if not _leads_to(name, weights)]
    left = f"; left aside: {', '.join(aside[:6])}{', ...' if len(aside) > 6 else ''}" if aside else ""
    return weights, f"{why}{off}{left}"


def _found(content: Mapping[Any, Any], path: tuple[str, ...], seen: set[int]) -> Iterator[Weights]:
    seen.add(id(content))  # a pickle may hold a dict in two places, and even in itself
    raw = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    state = {_bare(name): tensor for name, tensor in raw.items()}
    if len(state) < len(raw):  # names that a wrapper's part alone tells apart: two sets of weights
        state = raw
    below: dict[str, State] = defaultdict(dict)
    for name, tensor in state.items():
        for depth in range(min(name.count(".") + 1, DEEPEST)):
            parts = name.split(".", depth)
            below["".join(f"{part}." for part in parts[:-1])][parts[-1]] = tensor
    known = [prefix for prefix, inner in below.items() if _recognised(inner)]
    for prefix in known:
        nested = tuple(other for other in known if other != prefix and other.startswith(prefix))
        inner = {
            name: tensor
            for name, tensor in below[prefix].items()
            if name not in COUNTERS and not (nested and (prefix + name).startswith(nested))
        }
        wrappers = () if state is raw else sorted(WRAPPERS & {part for name in raw for part in name.split(".")})
        where = ".".join(filter(None, (*path, prefix.removesuffix("."))))
        yield Weights(where, inner, tuple(wrappers), not path and inner.keys() == content.keys())
    for name, value in content.items():
        if isinstance(value, dict) and id(value) not in seen and len(path) < DEEPEST:
            yield from _found(value, (*path, str(name)), seen)


def _recognised(state: State) -> bool:
    return any(family.recognises(state) for _, family in flows.items())


def _bare(name: str) -> str:
    """A name without the parts of wrappers."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _leads_to(name: str, weights: Weights) -> bool:
    """Whether what a checkpoint calls so is a part of these weights, or holds them."""
    path = f"{weights.path}." if weights.path else ""
    return path.startswith(f"{name}.") or any(
        called.startswith(path) and called.removeprefix(path) in weights.state for called in (name, _bare(name))
    )
