"""A checkpoint of the published AFHQ size: loaded without a second copy, and decoded (minutes, 2 GB of disk)."""

import json
import subprocess
import sys

import pytest
import torch

from harness.flows.synthetic import synthetic_state
from harness.flows.tarflow import TarFlowConfig

AFHQ = TarFlowConfig(
    image_channels=3, image_size=256, patch=8, channels=768, blocks=8, layers_per_block=8, num_classes=3
)
SCRIPT = """
import json, sys
import torch
from harness.decoders import build_decoder
from harness.flows import load_flow
from harness.metrics.memory import resident_peak

kept = {}

def load():
    kept["flow"] = load_flow(sys.argv[1])

def load_and_decode():
    load()
    flow, decoder = kept["flow"], build_decoder("ujd", tau=0.5)
    latents = flow.sample_latents(1, torch.Generator().manual_seed(0))
    kept["result"] = decoder.decode(flow, latents, torch.tensor([1]))

peak = resident_peak(load_and_decode if sys.argv[2] == "decode" else load)
told = {"bytes": peak.bytes, "method": peak.method, "num_tokens": kept["flow"].num_tokens}
if "result" in kept:
    result = kept["result"]
    told["shape"] = list(result.images.shape)
    told["finite"] = bool(result.images.isfinite().all())
    told["spread"] = float(result.images.std())
    told["iterations"] = [trace.iterations for trace in result.layers]
    told["seconds"] = sum(trace.wall_s for trace in result.layers)
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is compared as Linux counts it")
def test_a_published_size_is_never_held_twice(tmp_path):
    path = tmp_path / "afhq_model_8_768_8_8_0.07.pth"
    mask = torch.ones(AFHQ.num_tokens, AFHQ.num_tokens).tril()
    masks = {f"blocks.{block}.attn_mask": mask.clone() for block in range(AFHQ.blocks)}
    torch.save(synthetic_state(AFHQ) | masks, path)
    size = path.stat().st_size
    assert size > 1.8e9
    for work in ("load", "decode"):
        process = subprocess.run([sys.executable, "-c", SCRIPT, str(path), work], capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        told = json.loads(process.stdout)
        print(f"{work}: {told}, {told['bytes'] / size:.3f} of the file's {size:,} bytes")
        assert told["num_tokens"] == 1024
        assert told["bytes"] < 1.2 * size
    assert told["shape"] == [1, 3, 256, 256] and told["finite"] and told["spread"] > 0.1
