"""How tough a layer is for Jacobi iteration, and which guess suits it, from a forward pass (arXiv 2505.12849).

For a layer that maps x to z by ``z = exp(-log_scale(x)) * x + ...``, with spectral norms and means over the samples:

- Convergence Ranking Metric: ``CRM = |mean(exp(-log_scale) * x)| * |W_s| + |W_u|``, where W_s and W_u are the weights
  of the network's last linear map, to log_scale and to shift: how far an update can move the next one.
- Initial Guessing Metric: ``IGM(guess) = |mean(F(guess) - x)|``, F being one Jacobi iteration: what a guess leaves.

Definitions as in the paper's public code; only the share that a layer's CRM has of the flow's sum means anything. On
the shipped flows of natural images CRM misses layer 1, the slowest: its data are nearly noise, whose mean over samples
is nearly nothing. The IGM of the input ranks the layers of every shipped flow as their iterations do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.decoders.calibration import LayerMetrics
from harness.decoders.exact import ExactBatch
from harness.errors import HarnessError
from harness.flows.calls import jacobi_update
from harness.flows.protocols import CausalFlow, CausalLayer, Condition, ShowsOutputWeights

SAMPLES = 64
"""Exact samples that stand in for data where a calibration is made."""
DOMINANT = 2.0
"""A layer is tough when its CRM is above this multiple of an equal share. It picks the layers that the paper divides
in three of its four flows; in the fourth, ImageNet 64 conditional, it leaves out one of two."""


@torch.no_grad()
def layer_metrics(flow: CausalFlow, tokens: Tensor, labels: Tensor | None = None) -> list[LayerMetrics]:
    """Both metrics of every layer, in decoding order.

    Args:
        tokens: (B, L, D) data in raster order.
    """
    condition, found = flow.condition(len(tokens), labels), []
    for layer in reversed(flow.layers):
        x = layer.arrange(tokens)
        z, crm = _forward(layer, x, condition)
        zeros = torch.zeros_like(x)
        zeros[:, 0] = x[:, 0]
        igm = {
            name: _norm(jacobi_update(layer, z, guess, condition) - x)
            for name, guess in (("input", z), ("zeros", zeros))
        }
        found.append((layer, crm, igm))
        tokens = layer.restore(z)
    total = sum(crm for _, crm, _ in found) or 1.0
    return [
        LayerMetrics(layer.number, layer.block, crm, crm / total, crm / total > DOMINANT / len(found), igm)
        for layer, crm, igm in reversed(found)
    ]


def _forward(layer: CausalLayer, x: Tensor, condition: Condition) -> tuple[Tensor, float]:
    """(B, L, D) data of a layer -> its z_in, and its CRM."""
    if not isinstance(layer, ShowsOutputWeights):
        raise HarnessError("CRM needs the last linear map of a layer's network, which layers of this flow do not show")
    log_scale, shift = layer.affine(x[:, :-1], None, 0, condition)
    scaled = torch.cat([x[:, :1], x[:, 1:] * torch.exp(-log_scale)], dim=1)
    z = scaled.clone()
    z[:, 1:] -= shift * torch.exp(-log_scale)
    to_log_scale, to_shift = (float(torch.linalg.matrix_norm(weight.float(), 2)) for weight in layer.output_weights)
    return z, _norm(scaled) * to_log_scale + to_shift


def _norm(tokens: Tensor) -> float:
    """Spectral norm of the (L, D) mean of (B, L, D)."""
    return float(torch.linalg.matrix_norm(tokens.mean(0).float(), 2))


def metrics_of(flow: CausalFlow) -> list[LayerMetrics]:
    """The metrics on exact samples of the flow itself."""
    latents = flow.sample_latents(SAMPLES, torch.Generator().manual_seed(0))
    labels = torch.arange(SAMPLES, device=flow.device) % flow.num_classes if flow.num_classes else None
    return layer_metrics(flow, ExactBatch(flow, latents, labels).exact, labels)
