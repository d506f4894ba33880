"""What is told of the cells of a run before anything is measured: what they are, and which are skipped."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import HarnessError
from harness.flows import CausalFlow, load_flow
from harness.flows.protocols import Denoises
from harness.flows.published import published_as
from harness.measure.cells import Cell
from harness.measure.tasks.timing import describe
from harness.measure.units import Rows


def skipped(cells: Sequence[Cell]) -> dict[str, Rows]:
    """Rows of the status "skipped", by table, for cells whose checkpoint is not there."""
    outcomes = [{"status": "skipped", "error": cell.absent} for cell in cells]
    return {
        "timings": [describe(cell, None) | {"round": 0} | row for cell, row in zip(cells, outcomes, strict=True)],
        "quality": [cell.identity | row for cell, row in zip(cells, outcomes, strict=True)],
    }


def described(cells: Sequence[Cell]) -> tuple[Rows, list[str]]:
    """Rows of the table `cells`, and sentences on checkpoints that need not be what they are called.

    Every flow is loaded and every guidance bound once, before any folder is touched.

    Raises:
        HarnessError: a checkpoint that cannot be read, or guidance or denoising that its flow cannot have.
    """
    flows: dict[str, CausalFlow | None] = {}
    rows: Rows = []
    doubts: list[str] = []
    for cell in cells:
        if cell.checkpoint_digest not in flows:
            flow = None if cell.absent else load_flow(cell.checkpoint_path)
            flows[cell.checkpoint_digest] = flow
            known = published_as(cell.checkpoint_path)
            if flow is not None and known is not None:
                doubts += filter(None, [known.doubts(flow, cell.checkpoint_digest)])
        flow = flows[cell.checkpoint_digest]
        if flow is not None:
            _require_settings(cell, flow)
        extra = {"token_dim": flow and flow.token_dim, "fitted": cell.fitted, "code_version": cell.code_version}
        rows.append(describe(cell, flow) | extra | {"checkpoint_digest": flow and cell.checkpoint_digest})
    return rows, doubts


def _require_settings(cell: Cell, flow: CausalFlow) -> None:
    """Refuse guidance or denoising that a flow cannot have.

    Raises:
        HarnessError: it cannot.
    """
    try:
        flow.condition(1, guidance=cell.build_guidance())
    except HarnessError as error:
        raise HarnessError(f"checkpoint '{cell.checkpoint}' with guidance {cell.guidance}: {error}") from error
    if cell.denoise is not None and not isinstance(flow, Denoises):
        raise HarnessError(f"checkpoint '{cell.checkpoint}' has no denoising step; remove 'denoise' from the matrix")
