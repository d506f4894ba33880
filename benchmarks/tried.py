"""Ways to iterate a layer, by what they have reached after n network calls: error, which is the same on any machine.

    OMP_NUM_THREADS=1 python benchmarks/tried.py --out benchmarks/tried-iterations.md

Each layer is given its exact input; the error is the RMSE to its sequential output, over that output's own RMS. All
methods evaluate the whole layer in every call. With ``--seconds`` CPU seconds of such calls are added, on one thread
and not to be trusted beyond a tenth on a machine that others use.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from harness.decoders import build_decoder
from harness.decoders.exact import ExactBatch, LayerProblem
from harness.errors import HarnessError
from harness.flows import CausalFlow, load_flow

FLOWS = {"digits": (1, 3, 5), "cifar10-jpeg": (1, 3, 5), "afhq-cat-64": (1, 3, 5)}
CALLS = (1, 2, 3, 4, 6, 8)
SAMPLES = 16


def jacobi(problem: LayerProblem, calls: int) -> Iterator[Tensor]:
    """Plain iteration from the layer's input."""
    tokens = problem.inputs
    for _ in range(calls):
        tokens = problem.update(tokens)
        yield tokens


def anderson(memory: int) -> Callable[[LayerProblem, int], Iterator[Tensor]]:
    """Anderson acceleration (type II): the affine mix of the last updates whose residual is least, for each sample."""

    def iterate(problem: LayerProblem, calls: int) -> Iterator[Tensor]:
        tokens, updates, residuals = problem.inputs, [], []
        for _ in range(calls):
            update = problem.update(tokens)
            updates, residuals = [*updates, update][-memory - 1 :], [*residuals, update - tokens][-memory - 1 :]
            tokens = update
            if len(updates) > 1:
                steps = torch.stack([(r - residuals[-1]).flatten(1) for r in residuals[:-1]], dim=2).double()
                target = -residuals[-1].flatten(1)[..., None].double()
                gram = steps.mT @ steps
                ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-30
                weights = torch.linalg.solve(gram + ridge * torch.eye(gram.shape[1]), steps.mT @ target)
                moves = torch.stack([(u - update).flatten(1) for u in updates[:-1]], dim=2).double()
                tokens = update + (moves @ weights).squeeze(2).view_as(update).to(update)
            yield tokens

    return iterate


def bfloat16(last: bool) -> Callable[[LayerProblem, int], Iterator[Tensor]]:
    """Plain iteration with the network in bfloat16, in all calls or in all but the last."""

    def iterate(problem: LayerProblem, calls: int) -> Iterator[Tensor]:
        layer, inputs, condition = problem.layer, problem.inputs, problem.condition
        half = LayerProblem(layer.in_dtype(torch.bfloat16), inputs, problem.exact, condition)
        tokens = inputs
        for _ in range(calls):
            yield half.update(tokens) if last else problem.update(tokens)
            tokens = half.update(tokens)

    return iterate


def decoded(flow: CausalFlow, **options: object) -> Callable[[LayerProblem, int], Iterator[Tensor]]:
    """What a decoder of this harness makes of a budget of calls."""

    def iterate(problem: LayerProblem, calls: int) -> Iterator[Tensor]:
        for n in range(1, calls + 1):
            decoder = build_decoder("fitted", iterations=(n,), fallback="leave", **options)
            bound = decoder.bind(flow, len(problem.inputs))
            yield bound.solve(problem.layer, problem.inputs, problem.condition)[0]

    return iterate


def errors(method: Callable[[LayerProblem, int], Iterator[Tensor]], problem: LayerProblem) -> list[float]:
    """Relative error after each number of calls in `CALLS`."""
    scale = problem.exact.double().square().mean().sqrt()
    found = [float((t - problem.exact).double().square().mean().sqrt() / scale) for t in method(problem, max(CALLS))]
    return [found[n - 1] for n in CALLS]


def calibrated(flow: CausalFlow) -> bool:
    """Whether what was fitted to a flow can be read; if not, its rows are left out and it is said why."""
    try:
        build_decoder("fitted").bind(flow, 1)
    except HarnessError as error:
        print(f"left out: {error}", file=sys.stderr, flush=True)
        return False
    return True


def table() -> list[str]:
    """Markdown rows: one per flow, layer and method."""
    rows = ["| flow | layer | method | " + " | ".join(map(str, CALLS)) + " |", "|---" * (3 + len(CALLS)) + "|"]
    for name, numbers in FLOWS.items():
        flow = load_flow(name)
        latents = flow.sample_latents(SAMPLES, torch.Generator().manual_seed(11))
        labels = torch.arange(SAMPLES) % flow.num_classes if flow.num_classes else None
        methods = {
            "Jacobi from the input": jacobi,
            "Anderson, memory 1": anderson(1),
            "Anderson, memory 3": anderson(3),
            "bfloat16 in all calls": bfloat16(last=True),
            "bfloat16 in all but the last": bfloat16(last=False),
            "fitted guess": decoded(flow, correction=None),
            "fitted guess and corrections": decoded(flow),
        }
        for problem in ExactBatch(flow, latents, labels).layers():
            if problem.layer.number in numbers:
                for label, method in methods.items():
                    if label.startswith("fitted") and not calibrated(flow):
                        continue
                    found = " | ".join(f"{error:.2g}" for error in errors(method, problem))
                    rows.append(f"| {name} | {problem.layer.number} | {label} | {found} |")
                    print(rows[-1], file=sys.stderr, flush=True)
    return rows


def seconds() -> list[str]:
    """Markdown rows: the least CPU seconds of a call in bfloat16 against float32."""
    rows = ["| flow | batch | window | float32, ms | bfloat16, ms | times faster |", "|---" * 6 + "|"]
    for name in ("cifar10-jpeg", "afhq-cat-64", "random:2-256-6-6@32"):
        flow = load_flow(name)
        for batch in (1, 16) if name.startswith("random") else (1, 16, 64):
            latents, condition = flow.sample_latents(batch), flow.condition(batch)
            for window in (1, flow.num_tokens - 1):
                least = []
                for layer in (flow.layers[1], flow.layers[1].in_dtype(torch.bfloat16)):
                    cache, times = layer.new_cache(batch, condition), []
                    for _ in range(4):
                        start = time.process_time()
                        for _ in range(20 if window == 1 else 1):
                            layer.affine(latents[:, :window], cache, 0, condition)
                        times.append((time.process_time() - start) / (20 if window == 1 else 1))
                    least.append(min(times))
                rows.append(
                    f"| {name} | {batch} | {window} | {1e3 * least[0]:.3g} | {1e3 * least[1]:.3g} | "
                    f"{least[0] / least[1]:.2f} |"
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", action="store_true", help="also CPU seconds of bfloat16, on one thread")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        text = ["# Ways to iterate a layer: relative error after n network calls", "", *table()]
        if given.seconds:
            text += ["", "CPU seconds of one call of layer 2, the least of four, one thread, a shared machine:", "",
                     *seconds()]  # fmt: skip
    text += ["", f"Written by `python benchmarks/tried.py --out {given.out}{' --seconds' if given.seconds else ''}`."]
    given.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
