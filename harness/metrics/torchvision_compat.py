"""Importing torchvision where its compiled operators do not load.

A CPU build of torch beside a CUDA build of torchvision cannot load torchvision's operators, and then `import
torchvision` itself fails: it registers shape functions for two operators, ``nms`` and ``qnms``, that nobody defined.
Nothing used here needs a compiled operator, so declaring the two schemas is enough. Where the operators load, nothing
is declared.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def declare_missing_operators() -> tuple[str, ...]:
    """Make `import torchvision` work; to be called before it, and before importing what imports it.

    Returns:
        The schemas that were declared: none where torchvision's compiled operators load.
    """
    if _operators_load():
        return ()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)
    return SCHEMAS


_declared: list[torch.library.Library] = []  # a declaration lasts as long as its library object


def _operators_load() -> bool:
    """Whether the operators are there, loading them as torchvision itself would."""
    if _defined():
        return True
    spec = find_spec("torchvision")  # does not import it
    for folder in spec.submodule_search_locations or [] if spec else []:
        for library in sorted(Path(folder).glob("_C*.*")):
            try:
                torch.ops.load_library(str(library))
            except (OSError, ImportError):
                continue
    return _defined()


def _defined() -> bool:
    return all(hasattr(torch.ops.torchvision, schema.partition("(")[0]) for schema in SCHEMAS)
