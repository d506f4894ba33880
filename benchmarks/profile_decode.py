"""Where the time of a decode goes, by operator: shares of the CPU time of layer 2, on one thread.

python benchmarks/profile_decode.py cifar10-jpeg sequential 1
python benchmarks/profile_decode.py cifar10-jpeg "ujd initial=input" 16
"""

from __future__ import annotations

import sys

import torch
from torch.profiler import ProfilerActivity, profile

from harness.decoders import build_decoder
from harness.flows import load_flow
from harness.measure.matrix import parse_decoder


def shares(flow_name: str, spec: str, batch: int) -> list[tuple[str, float, int]]:
    """(operator, share of CPU time that it spends itself, calls), the largest first."""
    torch.set_num_threads(1)
    flow, table = load_flow(flow_name), parse_decoder(spec)
    decoder = build_decoder(table.pop("name"), **table).bind(flow, batch)
    layer, condition = flow.layers[1], flow.condition(batch)
    inputs = flow.sample_latents(batch, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        decoder.solve(layer, inputs, condition)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            decoder.solve(layer, inputs, condition)
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    rows = [(event.key, event.self_cpu_time_total / total, event.count) for event in events]
    return sorted(rows, key=lambda row: -row[1])


if __name__ == "__main__":
    for operator, share, calls in shares(sys.argv[1], sys.argv[2], int(sys.argv[3]))[:15]:
        print(f"{share:6.1%}  {calls:7d}  {operator}")
