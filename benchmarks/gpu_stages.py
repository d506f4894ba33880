"""The stages of `make gpu` that are no commands of the harness; each is a process of its own, see `benchmarks.gpu`."""

import argparse
import importlib.util
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.decoders import build_decoder
from harness.decoders.exact import ExactBatch
from harness.flows import load_flow
from harness.measure.matrix import load_matrix
from harness.measure.run_matrix import run_matrix
from harness.measure.sources import table_of
from harness.metrics.timing import timed
from harness.progress import reporter
from harness.runs.environment import environment
from harness.runs.store import read_run

TO_BE_REACHED = {"sequential": 0.25, "sejd": 0.12, "auto": 0.05}
"""Seconds of a decode of 256 samples of 2-256-6-6 on an H100."""
FORWARD_S = {"trained": 0.020, "afhq": 0.7}
"""Seconds of a forward pass of 256 samples there."""
PUBLISHED = {"transformer_flow.py": "apple/ml-tarflow", "GS_Jacobi_sampling.py": "GS-Jacobi"}
"""The modules of the published code that hold a `Model`, and whose they are."""
BLOCKS, ITERATIONS = 8, 10
"""Of GS-Jacobi's sampler: blocks of the first layer, and iterations at most of each."""
ROUNDS = 3


def describe(device: str) -> None:
    """What runs here, and whether there is a card."""
    facts = environment(device)
    print(json.dumps({name: facts[name] for name in ("python", "cpu", "cores", "gpu", "cuda", "packages")}, indent=1))
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        print(f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB of the card are free")


def measure(checkpoint: str, out: Path, device: str, tiny: bool) -> None:
    """A run of the matrix `gpu`: of a trained flow, or with "afhq" of the AFHQ shape with random weights."""
    changes: dict[str, Any] = {"device": device}
    profile = "afhq" if checkpoint == "afhq" else "trained"
    if tiny and profile == "afhq":
        checkpoint = "random:2-64-2-1@16"
    if profile == "trained" or tiny:
        name = table_of(checkpoint)["name"] if checkpoint.startswith("random:") else "cifar10-jpeg"
        changes["datasets"] = [{"name": name, "checkpoint": checkpoint}]
    if tiny:
        changes |= {
            "grid": {"batch_sizes": [2] if profile == "afhq" else [2, 4]},
            "timing": {"rounds": 1},
            "quality": {"num_samples": 8},
        }
    run_matrix(load_matrix("gpu", profile, changes), out, reporter(), resume=True)


def reached(path: Path) -> None:
    """Median seconds of the largest batch of a run, ended or not, beside what is to be reached."""
    timings, profile = read_run(path).table("timings"), path.name
    done = timings[timings["status"] == "ok"]
    for (device, batch), largest in done[done["batch_size"] == done["batch_size"].max()].groupby(
        ["device", "batch_size"]
    ):
        print(f"{profile}, batch {batch}, {device}; in brackets what is to be reached with 256 samples on an H100")
        print(f"forward pass {largest['encode_s'].median():.4g} s ({FORWARD_S[profile]:g})")
        for label, rows in largest.groupby("label", sort=False):
            goal = f" ({TO_BE_REACHED[label]:g})" if profile == "trained" and label in TO_BE_REACHED else ""
            print(f"{label} {rows['wall_s'].median():.4g} s{goal}")


def beside(checkpoint: str, folder: Path, out: Path, device: str, tiny: bool) -> None:
    """The published sampling loops and ours on the same latents, in turn, networks in bfloat16."""
    found = {path.name: path for path in sorted(folder.rglob("*.py")) if path.name in PUBLISHED}
    for name, owner in PUBLISHED.items():
        if name not in found:
            print(f"{owner}: there is no {name} below the folder that PEERS names")
    flow, single = (load_flow(checkpoint, device, dtype) for dtype in (torch.bfloat16, torch.float32))
    batch = 4 if tiny else 256
    drawn, exact = (ExactBatch.draw(one, batch, torch.Generator().manual_seed(0)) for one in (flow, single))
    calls = {
        name: partial(lambda decoder: drawn.result(decoder).images, build_decoder(name))
        for name in ("sequential", "sejd", "auto")
        if not build_decoder(name).missing(flow, batch)
    }
    calls |= {PUBLISHED[name]: _published(path, single, exact) for name, path in found.items()}
    wanted, rows = exact.result(build_decoder("sequential")).images, []
    taken: dict[str, list[float]] = {name: [] for name in calls}
    images: dict[str, torch.Tensor] = {}
    for attempt in range(2 if tiny else ROUNDS + 1):
        for name, call in calls.items():
            seconds, images[name] = timed(call, device)
            if attempt:  # the first is a warm-up
                taken[name].append(seconds)
        rows = [
            {"name": name, "batch": batch, "seconds": taken[name], "deviation_rmse": _rmse(images[name], wanted)}
            for name in calls
        ]
        out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for row in rows:
        print(f"{row['name']}: {statistics.median(row['seconds']):.4g} s, deviation {row['deviation_rmse']:.3g}")


def _published(path: Path, flow: Any, drawn: ExactBatch) -> Any:
    """A call of a published sampler: its own model with the flow's weights, under autocast as its scripts have it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    shape, device = flow.config, flow.device
    model = module.Model(
        in_channels=shape.image_channels, img_size=shape.image_size, patch_size=shape.patch, channels=shape.channels,
        num_blocks=shape.blocks, layers_per_block=shape.layers_per_block, num_classes=shape.num_classes,
    )  # fmt: skip
    unknown = model.load_state_dict(flow.state_dict(), strict=False)
    if wrong := [key for key in (*unknown.missing_keys, *unknown.unexpected_keys) if not key.endswith("attn_mask")]:
        raise SystemExit(f"'{path.name}' is of another layout than the flow: {', '.join(wrong[:3])}")
    model = model.to(device).eval()
    count = flow.num_layers
    lists = {
        "num_GS_list": [BLOCKS] + [1] * (count - 1),
        "max_jacobi_list": [ITERATIONS] * count,
        "guess_list": [0] * count,
    }
    options = {} if path.name == "transformer_flow.py" else lists

    @torch.no_grad()
    def sample() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            images: torch.Tensor = model.reverse(drawn.latents, drawn.labels, **options)
        return images

    return sample


def _rmse(images: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((images.double() - wanted.double()).square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("stage", choices=["environment", "matrix", "peers", "reached"])
    parser.add_argument("paths", nargs="*")
    given = parser.parse_args()
    if given.stage == "environment":
        return describe(given.device)
    if given.stage == "reached":
        for path in map(Path, given.paths):
            reached(path)
        return None
    checkpoint, *others = given.paths
    call = {"matrix": measure, "peers": beside}[given.stage]
    return call(checkpoint, *map(Path, others), given.device, given.tiny)


if __name__ == "__main__":
    main()
