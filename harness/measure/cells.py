"""What is measured: a checkpoint on a device, and with a decoder and its options a cell of a matrix.

A key hashes what determines a result, never a place in a list, so it does not depend on the order of anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.decoders import Decoder, Guidance, build_decoder
from harness.errors import HarnessError
from harness.flows import CausalFlow, load_flow
from harness.flows.checkpoints import digest
from harness.flows.precision import dtype_named
from harness.runs.titles import flow_title

BASELINE = "sequential"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint on a device; plain values only, so that it travels to other processes."""

    cell_id: str  # content hash of what determines the result
    cell_key: str  # the same without the code version
    dataset: str  # name of the real images that the flow was trained on
    data_root: str | None  # folder of these, or None for the default
    checkpoint: str  # name or file name
    checkpoint_path: str  # the file
    checkpoint_digest: str  # SHA-256 of it
    seed: int
    dtype: str  # of the flow's networks, see `dtype_named`
    device: str
    code_version: str  # of what measures it

    @classmethod
    def of(
        cls,
        path: Path,
        name: str,
        *,
        seed: int,
        device: str,
        dtype: str = "float32",
        dataset: str = "",
        data_root: str | None = None,
        code_version: str = "",
        **facts: Any,
    ) -> Subject:
        """A checkpoint that is no part of a matrix; `facts` are plain values that determine the result too."""
        determining: dict[str, Any] = {
            "dataset": dataset,
            "checkpoint_digest": digest(path),
            "seed": seed,
            "dtype": dtype,
            "device": device,
        }
        key = determining | facts
        return Subject(
            **determining,
            cell_id=content_hash(key | {"code_version": code_version}),
            cell_key=content_hash(key),
            data_root=data_root,
            checkpoint=name,
            checkpoint_path=str(path.resolve()),
            code_version=code_version,
        )

    def load(self) -> CausalFlow:
        return load_flow(self.checkpoint_path, device=self.device, dtype=dtype_named(self.dtype))

    def build_guidance(self) -> Guidance | None:
        return None

    @property
    def flow(self) -> str:
        """What the flow is called in every table and message."""
        return flow_title({"dataset": self.dataset, "checkpoint": self.checkpoint})

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that every row of this subject carries."""
        return {"cell_id": self.cell_id, "cell_key": self.cell_key}


@dataclass(frozen=True, kw_only=True)
class Cell(Subject):
    """One configuration of a matrix."""

    group_id: str  # cells of one group are timed in paired rounds
    data_size: int | None  # side of the real images, or None for the flow's
    decoder: str  # name
    label: str  # what tables and figures call the decoder with these options
    given: str  # the options that differ from the decoder's defaults, as JSON: what it is built from
    options: str  # all options but tau, as JSON
    tau: float | None  # None for a decoder that takes none
    guidance: str | None  # JSON, or None
    batch_size: int  # samples decoded together
    denoise: float | None = None  # noise that a step after decoding takes out, in image units; None: no such step
    absent: str | None = None  # why the checkpoint of an optional dataset is not there; such a cell is skipped
    fitted: str | None = None  # digest of the calibration or schedule that the decoder reads, or None

    def build(self) -> Decoder:
        return build_decoder(self.decoder, **({} if self.tau is None else {"tau": self.tau}), **json.loads(self.given))

    def build_guidance(self) -> Guidance | None:
        return None if self.guidance is None else Guidance(**json.loads(self.guidance))

    @property
    def title(self) -> str:
        tau = "" if self.tau is None else f" tau {self.tau:g}"
        return f"{self.label}{tau}, batch {self.batch_size}"


def groups(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells by `group_id`, both in the order given."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.group_id, []).append(cell)
    return found


def content_hash(content: Any) -> str:
    """Sixteen hexadecimal digits of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def resolve_device(name: str) -> str:
    """``"cpu"`` or ``"cuda"``; ``"auto"`` takes CUDA where there is one.

    Raises HarnessError: CUDA was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name == "cuda" and not available:
        raise HarnessError("device 'cuda' was asked for, but torch finds no CUDA device here; use 'cpu' or 'auto'")
    return name
