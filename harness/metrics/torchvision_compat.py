"""Importing torchvision where its compiled operators do not load, or do not include all that its Python code names.

A CPU build of torch beside a CUDA build of torchvision cannot load torchvision's operators, and then `import
torchvision` itself fails: it registers shape functions for operators, ``nms`` and ``qnms``, that nobody defined.
Nothing used here needs a compiled operator, so declaring the schemas is enough. An operator that is there is never
declared again, which would fail: torchvision 0.26 has ``nms`` and no ``qnms``.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def declare_missing_operators() -> tuple[torch.library.Library, tuple[str, ...]]:
    """Make `import torchvision` work; to be called before it, and before importing what imports it.

    Returns what holds the declarations, which last as long as it does, and the names of the operators declared.
    """
    if _missing():
        _load_compiled()
    library, missing = torch.library.Library("torchvision", "FRAGMENT"), _missing()
    for name in missing:
        library.define(name + SIGNATURE)
    return library, missing


def _missing() -> tuple[str, ...]:
    return tuple(name for name in OPERATORS if not hasattr(torch.ops.torchvision, name))


def _load_compiled() -> None:
    """Load torchvision's operators as it would itself, where they load."""
    spec = find_spec("torchvision")  # does not import it
    for folder in spec.submodule_search_locations or [] if spec else []:
        for library in sorted(Path(folder).glob("_C*.*")):
            with suppress(OSError, ImportError):
                torch.ops.load_library(str(library))
