"""What a token's nearest predecessors are worth: a layer's output without them (arXiv 2505.24791, Eq. 6).

Token l is ``z_in[l] * exp(log_scale(x[<l])) + shift(x[<l])``; Eq. 6 takes ``x[<l-o]`` in place of ``x[<l]``, so that
o = 1 leaves the nearest predecessor l-1 out, and says that what is left out is masked in attention. In a TarFlow the
parameters of token l come out at position l-1, whose own hidden state starts from x[l-1]; so there are three readings:

``attention``: no query sees the keys of tokens l-1 to l-o, its own (l-1) included. All transformer layers are masked
alike and lags only add up, so a key that is seen holds nothing of what is left out, however many layers there are. What
leaks is x[l-1] alone, through the query's own residual connections.

``attention-self``: masked as code often does it, the diagonal kept: the query sees its own key and none of the o before
it. Token l-1 is used in full; l-2 to l-o-1 are gone, in every layer.

``input``: the dependence is truly removed. Token l is evaluated in a window of its own on the cached, true prefix
x[<l-o], with zeros in place of the tokens l-o to l-1. This needs no attention, and the primitive `affine` alone.

Scope ``layer``: each layer is given its exact input and, beyond o, the exact predecessors, so that a row tells of one
layer alone and no error feeds on itself. Scope ``all``: samples are drawn with every layer so restricted, each token
from tokens that were drawn so; the rows compare each layer's output with that of the exact sample of the same latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.datasets import load_dataset
from harness.decoders.exact import LayerProblem
from harness.errors import HarnessError, unknown
from harness.flows.protocols import CausalFlow, MasksAttention
from harness.measure.cells import Subject
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.probes.restrictions import READINGS, Restriction, restriction
from harness.measure.units import Bench, Rows, Unit, batches
from harness.metrics.features import feature_extractor
from harness.metrics.fid import FeatureStatistics, frechet_distance
from harness.metrics.quality import features_of, reference_features
from harness.options import Batch, Count
from harness.runs.tables import INTEGER, REAL, TEXT

SCOPES = ("layer", "all")
STRIP = 12
"""Images in a strip."""
LEAK_SAMPLES, LEAK_TOKENS = 4, 8
"""On how many samples and tokens of each the leak is measured."""

REDUNDANCY = probe_table(
    "redundancy",
    ("scope", "reading", "layer", "o"),
    {
        "layer": INTEGER,  # decoding order, of the output that is compared
        "block": INTEGER,
        "o": INTEGER,  # predecessors left out
        "scope": TEXT,  # "layer": in this layer alone; "all": in every layer
        "reading": TEXT,  # "attention", "attention-self" or "input"
        "cosine": REAL,  # similarity of the two outputs, median over samples
        "cosine_p10": REAL,
        "cosine_p90": REAL,
        "l2": REAL,  # distance, median over samples
        "l2_p10": REAL,
        "l2_p90": REAL,
        "l2_relative": REAL,  # over the norm of the full output
        "leak": REAL,  # share of the dependence on what is left out that is still there; scope "layer" alone
        "fid": REAL,  # of the images, null unless every layer is affected
        "fid_features": TEXT,
        "num_samples": INTEGER,
    },
)
"""One row per flow, scope, reading, layer and o: the output of a layer with its o nearest predecessors left out against
its output with all of them."""


@probes.register("redundancy")
@dataclass(kw_only=True)
class Redundancy(Probe):
    """Layers without their o nearest predecessors: how far their outputs turn, and what becomes of the images."""

    tables = (REDUNDANCY,)

    o: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(description="Predecessors left out.")] = (
        0, 1, 2, 3, 4, 5, 8, 16, 32,
    )  # fmt: skip
    scopes: Annotated[tuple[str, ...], Field(description="In one layer at a time (layer), in all of them (all).")] = (
        SCOPES
    )
    readings: Annotated[tuple[str, ...], Field(description="What leaving out means.")] = READINGS
    samples: Annotated[Count, Field(description="Latents that are decoded; FID rests on as many.")] = 256
    batch: Annotated[Batch, Field(description="Samples per network call.")] = 64

    strips: ClassVar[str] = "redundancy"
    """Folder of the run for image strips."""

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        for kind, given, known in (("scope", self.scopes, SCOPES), ("reading", self.readings, READINGS)):
            for name in given:
                if name not in known:
                    raise unknown(kind, name, known)
        if max(self.o) >= flow.num_tokens:
            raise HarnessError(f"o = {max(self.o)} leaves nothing of {flow.num_tokens} tokens; give --o less")
        return [
            Unit(
                f"{scope}, {reading}, o = {o}",
                (subject,),
                2.0 + (o if reading == "input" else 0) + (8 if scope == "all" else 0),
                {"scope": scope, "reading": reading, "o": o},
                ("redundancy",),
            )
            for scope in self.scopes
            for reading in self.readings
            for o in self.o
            if reading == "input" or isinstance(flow, MasksAttention)
        ]

    @torch.no_grad()
    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,) = unit.subjects
        flow = bench.flow(subject)
        exact = bench.keep("exact", (subject.cell_id, self.samples), lambda: self._problems(subject, bench))
        restricted = restriction(flow, unit.key["reading"], unit.key["o"])
        if unit.key["scope"] == "layer":
            outputs = [[_alone(problem, restricted) for problem in problems] for problems in exact]
            extra = [{"leak": leak(problem, restricted, unit.key)} for problem in exact[0]]
        else:
            outputs = [_drawn(flow, problems, restricted) for problems in exact]
            extra = [{} for _ in flow.layers]
            if (images := _images(flow, outputs)) is not None:
                name = f"{subject.checkpoint}_{unit.key['reading']}_o{unit.key['o']:02d}.png"
                bench.add_grid(f"{self.strips}/{name}", images[:STRIP], columns=STRIP)
                fid = bench.keep("fid", subject.cell_id, lambda: _fid_of(flow, subject, bench))
                extra[-1] |= fid(images)
        rows = [
            {**unit.key, **_compared([problems[i] for problems in exact], [output[i] for output in outputs]), **more}
            for i, more in enumerate(extra)
        ]
        return {"redundancy": rows}

    def _problems(self, subject: Subject, bench: Bench) -> list[list[LayerProblem]]:
        """Every layer of every batch."""
        return [list(bench.batch(subject, part).layers()) for part in batches(range(self.samples), self.batch)]


def _alone(problem: LayerProblem, restricted: Restriction) -> Tensor:
    """(B, L, D) the layer's output, restricted, from its exact input and the exact predecessors."""
    return restricted.output(problem.layer, problem.inputs, problem.exact, problem.condition)


def _drawn(flow: CausalFlow, problems: Sequence[LayerProblem], restricted: Restriction) -> list[Tensor]:
    """(B, L, D) outputs of every layer, in its own order, when all of them are restricted."""
    tokens, outputs = problems[0].layer.restore(problems[0].inputs), []
    for problem in problems:
        outputs.append(restricted.decode(problem.layer, problem.layer.arrange(tokens), problem.condition))
        tokens = problem.layer.restore(outputs[-1])
    return outputs


def _images(flow: CausalFlow, outputs: Sequence[Sequence[Tensor]]) -> Tensor | None:
    last = flow.layers[-1]
    return flow.to_images(last.restore(torch.cat([layers[-1] for layers in outputs])))


def _compared(problems: Sequence[LayerProblem], outputs: Sequence[Tensor]) -> dict[str, Any]:
    """One row: the outputs of a layer, batch by batch, against the exact ones."""
    exact = torch.cat([problem.exact for problem in problems]).flatten(1).double()
    output = torch.cat(list(outputs)).flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(exact, output)
    l2 = (exact - output).norm(dim=1)
    share = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=l2.device)
    row: dict[str, Any] = {"layer": problems[0].layer.number, "block": problems[0].layer.block}
    for name, values in (("cosine", cosine), ("l2", l2)):
        low, median, high = values.quantile(share).tolist()
        row |= {name: median, f"{name}_p10": low, f"{name}_p90": high}
    return row | {"l2_relative": float((l2 / exact.norm(dim=1)).median()), "num_samples": len(exact)}


def leak(problem: LayerProblem, restricted: Restriction, key: Mapping[str, Any]) -> float | None:
    """How much of a token's dependence on what it may not look at is left; 0 when it is truly removed.

    The tokens left out are replaced by those of another sample. The leak is what this changes in the token that z_in
    of 1 gives, root mean square over a few tokens and samples, over what it changes in the unrestricted layer.
    """
    o = key["o"]
    if o == 0 or len(problem.exact) < 2:
        return None
    first = 1 if key["reading"] != "attention-self" else 2  # lag of the nearest token that is left out
    samples, length = min(LEAK_SAMPLES, len(problem.exact)), problem.layer.num_tokens
    positions = torch.linspace(min(o + first, length - 1), length - 1, LEAK_TOKENS).round().long().unique().tolist()
    rows = torch.arange(samples).repeat_interleave(len(positions))
    before = problem.exact[rows]
    after, other = before.clone(), problem.exact.roll(1, 0)[rows]
    places = torch.tensor(positions * samples)
    for row, place in enumerate(places.tolist()):
        gone = slice(max(0, place - first + 1 - o), max(0, place - first + 1))
        after[row, gone] = other[row, gone]
    inputs = torch.ones_like(before)
    everything = replace(problem.select(rows), inputs=inputs)
    pick = torch.arange(len(rows)), places

    def change(output: Callable[[Tensor], Tensor]) -> float:
        return float((output(after)[pick] - output(before)[pick]).double().square().mean().sqrt())

    if not (full := change(everything.update)):
        return None
    return change(lambda tokens: restricted.output(problem.layer, inputs, tokens, everything.condition)) / full


def _fid_of(flow: CausalFlow, subject: Subject, bench: Bench) -> Callable[[Tensor], dict[str, Any]]:
    """(N, C, H, W) images -> their FID against the flow's own dataset; nothing where that is not at hand."""
    if flow.image_shape is None:
        return lambda images: {}
    try:
        real = load_dataset(subject.dataset, "train", root=subject.data_root, size=flow.image_shape[-1])
        extractor = feature_extractor(subject.dataset, device=subject.device, root=subject.data_root)
        reference = reference_features(real.of_shape(flow.image_shape, f"'{subject.dataset}'"), extractor).statistics
    except HarnessError as error:
        bench.notes.append(f"no FID: {error}")
        return lambda images: {}

    def fid(images: Tensor) -> dict[str, Any]:
        features = features_of(images, extractor)
        distance = frechet_distance(reference, FeatureStatistics.of(features)) if len(features) > 2 else None
        return {"fid": distance, "fid_features": extractor.name}

    return fid
