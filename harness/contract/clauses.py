"""The clauses, in the order in which they are reported. The first line of each docstring is the promise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.contract.case import TOLERANCE, Broken, Case, NotApplicable, clause, distance
from harness.decoders import Decoder, DecodeResult, Guidance
from harness.decoders.certificate import certifiable
from harness.decoders.micro_batches import LiveBytes
from harness.decoders.sequential import Sequential, solve_sequential
from harness.errors import HarnessError
from harness.flows import CausalFlow, CausalLayer
from harness.flows.tap import Observer, Tally, tap

CERTIFIED = 0.02
"""The tolerance that the clause on certificates asks for."""


@clause("exact")
def exact(case: Case) -> str:
    """tau = 0 gives the sequential samples; a layer that was left inexact, as an option allows, says so."""
    decoder = case.build(tau=0.0)
    return _agrees(decoder, decoder.decode(case.flow, case.latents, case.labels), case.exact)


@clause("prefix")
def prefix(case: Case) -> str:
    """After t iterations of a layer its first t + 1 tokens are exact for the inputs it was given."""
    if not case.takes("max_iterations"):
        raise NotApplicable("the decoder has no option max_iterations to stop it after t iterations")
    condition = case.flow.condition(case.batch, case.labels)
    worst = 0.0
    limits = sorted({1, 2, 5, case.flow.num_tokens // 2} & set(range(1, case.flow.num_tokens)))
    for t in limits:
        seen = _Boundaries()
        decoder = case.build(tau=0.0, max_iterations=t, fallback="leave")
        decoder.decode(tap(case.flow, seen), case.latents, case.labels)
        for layer, inputs, outputs in seen.layers:
            wanted, _ = solve_sequential(layer, inputs, condition)
            off = distance(outputs[:, : t + 1], wanted[:, : t + 1])
            if not off <= TOLERANCE:
                raise Broken(
                    f"layer {layer.number}: the first {t + 1} tokens are off by {off:.1e} after {t} iterations"
                )
            worst = max(worst, off)
    return f"largest difference {worst:.1e} after {', '.join(map(str, limits))} iterations"


@clause("bounds")
def bounds(case: Case) -> str:
    """A layer takes at most L iterations, and at most the token evaluations that its decoder documents."""
    most, length = 0, case.flow.num_tokens
    passes = case.flow.condition(case.batch, case.labels).passes
    for decoder in (case.build(), case.build(tau=0.0)):
        allowed = decoder.most_token_evaluations(length)
        for trace in decoder.decode(case.flow, case.latents, case.labels).layers:
            if trace.iterations > length:
                raise Broken(f"layer {trace.layer} took {trace.iterations} iterations for {length} tokens")
            limit = passes * (allowed + (length - 1) * ("redecoded" in trace.flags))
            if trace.token_evaluations > limit:
                raise Broken(f"layer {trace.layer} evaluated {trace.token_evaluations:g} tokens, allowed are {limit}")
            most = max(most, trace.iterations)
    return f"at most {most} iterations for {length} tokens"


@clause("untouched")
def untouched(case: Case) -> str:
    """Latents and labels are as they were after a decode."""
    latents, labels = case.latents, case.labels
    case.build().decode(case.flow, latents, labels)
    if changed := int((latents != case.latents).sum()):
        raise Broken(f"{changed} of {latents.numel()} latents were changed")
    if labels is not None and case.labels is not None and not torch.equal(labels, case.labels):
        raise Broken("the labels were changed")
    return "bitwise as they were"


@clause("deterministic")
def deterministic(case: Case) -> str:
    """The same latents and options give the same samples and costs, whatever was decoded before and drawn meanwhile."""
    first = case.build()
    runs = []
    with torch.random.fork_rng(devices=[]):
        for place, decoder in enumerate((first, first, case.build())):
            torch.manual_seed(place)
            runs.append(decoder.decode(case.flow, case.latents, case.labels))
            decoder.decode(case.flow, case.latents.flip(0) * 0.5, case.labels)
    for run in runs[1:]:
        if not torch.equal(run.tokens.nan_to_num(), runs[0].tokens.nan_to_num()):
            raise Broken(f"the samples of two decodes differ by {distance(run.tokens, runs[0].tokens):.1e}")
        if _costs(run) != _costs(runs[0]):
            raise Broken("the iterations or token evaluations of two decodes differ")
    return "three decodes are bitwise the same"


@clause("batch")
def batch(case: Case) -> str:
    """A sample is the same alone and among others, at tau = 0 or where the stopping rule looks at each sample."""
    options = {"scope": "sample"} if case.takes("scope") else {"tau": 0.0}
    together = case.build(**options).decode(case.flow, case.latents, case.labels).tokens
    worst = 0.0
    for i in range(case.batch):
        labels = None if case.labels is None else case.labels[i : i + 1]
        alone = case.build(**options).decode(case.flow, case.latents[i : i + 1], labels).tokens
        off = distance(alone, together[i : i + 1])
        if not off <= TOLERANCE:
            raise Broken(f"sample {i} alone differs by {off:.1e} from itself in a batch of {case.batch}, {options}")
        worst = max(worst, off)
    return f"largest difference {worst:.1e} with {options}"


@clause("finite")
def finite(case: Case) -> str:
    """Samples are finite, or the decoder says that it did not converge, however large the latents."""
    overflowed = []
    for scale in (1.0, 1e2, 1e8, 1e38):
        result = case.build().decode(case.flow, case.latents * scale, case.labels)
        bad = int((~result.tokens.isfinite()).any(dim=(1, 2)).sum())
        if bad and result.converged:
            raise Broken(f"{bad} of {case.batch} samples are not finite for latents times {scale:g}, yet converged")
        if bad:
            overflowed.append(scale)
    return f"overflow noticed from latents times {min(overflowed):g}" if overflowed else "finite throughout"


@clause("shapes")
def shapes(case: Case) -> str:
    """Tokens are (B, L, D) in the latents' dtype, images are those tokens, and there is one trace a layer."""
    result = case.build().decode(case.flow, case.latents, case.labels)
    if result.tokens.shape != case.latents.shape or result.tokens.dtype != case.latents.dtype:
        raise Broken(f"tokens are {result.tokens.dtype} {tuple(result.tokens.shape)}, not {tuple(case.latents.shape)}")
    images = case.flow.to_images(result.tokens)
    if (images is None) != (result.images is None):
        raise Broken("images are missing" if result.images is None else "there are images of data that are none")
    if images is None or result.images is None:
        return f"tokens {tuple(result.tokens.shape)}; the flow's data are no images"
    if result.images.shape != images.shape or not torch.equal(result.images.nan_to_num(), images.nan_to_num()):
        raise Broken("images are not the tokens' own")
    return f"tokens {tuple(result.tokens.shape)}, images {tuple(images.shape)}"


@clause("condition")
def condition(case: Case) -> str:
    """Labels and guidance reach the layers: at tau = 0 the samples are the sequential ones under both."""
    tried = []
    for guidance in (Guidance(0.5), Guidance(0.5, components="a", annealed=True, temperature=1.5)):
        try:
            case.flow.condition(case.batch, case.labels, guidance)
        except HarnessError:
            continue  # guidance that this flow does not know
        decoder = case.build(tau=0.0)
        wanted = Sequential().decode(case.flow, case.latents, case.labels, guidance).tokens
        found = decoder.decode(case.flow, case.latents, case.labels, guidance)
        tried.append(f"{guidance.components}: {_agrees(decoder, found, wanted)}")
    if case.labels is not None:
        swapped = (case.labels + 1) % case.flow.num_classes
        decoder = case.build(tau=0.0)
        wanted = Sequential().decode(case.flow, case.latents, swapped).tokens
        tried.append("other labels: " + _agrees(decoder, decoder.decode(case.flow, case.latents, swapped), wanted))
    if not tried:
        raise NotApplicable("the flow has neither classes nor guidance")
    return "; ".join(tried)


@clause("memory")
def memory(case: Case) -> str:
    """Under a bound on memory the samples are the same, and no more bytes are alive than it allows."""
    if not case.takes("max_memory"):
        raise NotApplicable("the decoder has no option max_memory")
    smallest, worst = 1.0, 0.0
    for options in [{}, {"scope": "sample"}] if case.takes("scope") else [{}]:
        case.build(**options).decode(case.flow, case.latents, case.labels)  # what is read first is no part
        with LiveBytes() as live:
            whole = case.build(**options).decode(case.flow, case.latents, case.labels)
        for share in (0.9, 0.6, 0.4):
            bound = int(live.peak * share)
            try:
                with LiveBytes() as cut:
                    result = case.build(**options, max_memory=bound).decode(case.flow, case.latents, case.labels)
            except HarnessError:
                continue  # too little for this method, which says so
            off = distance(result.tokens, whole.tokens)
            if not off <= TOLERANCE:
                raise Broken(f"with {share:.0%} of the bytes the samples differ by {off:.1e}, {options}")
            if cut.peak > bound:
                raise Broken(f"max_memory={bound:,} was allowed, {cut.peak:,} bytes were alive, {options}")
            smallest, worst = min(smallest, share), max(worst, off)
    if smallest == 1.0:
        raise NotApplicable("this method needs nine tenths of its bytes for this batch, and says so")
    return f"largest difference {worst:.1e} with {smallest:.0%} of the bytes"


@clause("trace")
def trace(case: Case) -> str:
    """The trace tells the truth: layers in decoding order, token evaluations and depth as counted from outside."""
    for size in (1, case.batch):
        labels = None if case.labels is None else case.labels[:size]
        for options in ({}, {"tau": 0.0}):
            tally = Tally()
            result = case.build(**options).decode(tap(case.flow, tally), case.latents[:size], labels)
            unwatched = case.build(**options).decode(case.flow, case.latents[:size], labels)
            if not torch.equal(result.tokens.nan_to_num(), unwatched.tokens.nan_to_num()):
                raise Broken("the samples are others when the layers are watched")
            if _costs(result) != _costs(unwatched):
                raise Broken("the costs are others when the layers are watched")
            for problem in _dishonest(result, case.flow, tally, size):
                raise Broken(problem)
    return f"{result.token_evaluations:g} token evaluations a sample and depth {result.depth} at tau = 0, as counted"


@clause("certificate")
def certificate(case: Case) -> str:
    """Exact samples are certified to rounding, and those certified to a tolerance deviate by little more, if at all."""
    if not (case.takes("certify") and certifiable(case.flow)):
        raise NotApplicable("the decoder has no option certify, or no call inverts the flow's layers")
    exactly = case.build(tau=0.0, certify="state").decode(case.flow, case.latents, case.labels)
    told = exactly.certificate
    exact_enough = distance(exactly.tokens, case.exact) <= TOLERANCE
    if told is None or (exact_enough and not float(told.rms.max()) <= TOLERANCE):
        raise Broken(
            f"an exact decode has {'no certificate' if told is None else f'a certificate of {told.rms.max():.1e}'}"
        )
    result = case.build(certify=CERTIFIED).decode(case.flow, case.latents, case.labels)
    if result.certificate is None or result.certificate.estimate is None or result.certificate.upper is None:
        raise Broken("a decode that was to be certified is not")
    if not result.certificate.estimate.isfinite().all() or (result.certificate.upper > CERTIFIED).any():
        raise Broken(f"{int(result.certificate.above.sum())} samples are left above the tolerance")
    deviation = (result.tokens - case.exact).square().mean(dim=(1, 2)).sqrt()
    if not float(deviation.max()) <= 2 * CERTIFIED:
        raise Broken(f"certified to deviate by {CERTIFIED:g} at most, a sample deviates by {deviation.max():.2g}")
    return f"certified to {CERTIFIED:g}, the largest deviation is {deviation.max():.1e}"


class _Boundaries(Observer):
    """Keeps what every layer was given and what came out."""

    def __init__(self) -> None:
        self.layers: list[tuple[CausalLayer, Tensor, Tensor]] = []

    def layer_begins(self, layer: CausalLayer, inputs: Tensor) -> None:
        self._inputs = inputs.clone()

    def layer_ends(self, layer: CausalLayer, outputs: Tensor) -> None:
        self.layers.append((layer, self._inputs, outputs.clone()))


def _agrees(decoder: Decoder, result: DecodeResult, wanted: Tensor) -> str:
    off = distance(result.tokens, wanted)
    if off <= TOLERANCE:
        return f"largest difference {off:.1e}"
    left = [trace.layer for trace in result.layers if trace.state != "converged"]
    if left and decoder.fallback != "sequential":
        return f"off by {off:.1e}; layers {left} say so, as fallback='{decoder.fallback}' allows"
    said = (
        f"layers {left} did not converge, but should have been decoded again" if left else "every layer says converged"
    )
    raise Broken(f"off by {off:.1e} from the sequential samples; {said}")


def _costs(result: DecodeResult) -> list[tuple[str, int, float, int]]:
    return [(trace.mode, trace.iterations, trace.token_evaluations, trace.depth) for trace in result.layers]


def _dishonest(result: DecodeResult, flow: CausalFlow, tally: Tally, size: int) -> Iterator[str]:
    """What a trace claims and an independent count does not confirm."""
    numbers = [(trace.layer, trace.block) for trace in result.layers]
    if numbers != [(layer.number, layer.block) for layer in flow.layers]:
        yield f"traces are of (layer, block) {numbers}, not one a layer in decoding order"
    for trace in result.layers:
        counted = tally.layers[trace.layer]
        if abs(trace.token_evaluations - counted.token_evaluations) > 1e-6 * max(1.0, counted.token_evaluations):
            yield (
                f"layer {trace.layer} claims {trace.token_evaluations:g} token evaluations a sample, "
                f"counted are {counted.token_evaluations:g}"
            )
        # Samples may be decoded one after another without depending on each other; alone they can not.
        if size == 1 and trace.depth != counted.calls:
            yield f"layer {trace.layer} claims depth {trace.depth}, counted are {counted.calls} calls"
        if trace.depth > counted.calls:
            yield f"layer {trace.layer} claims depth {trace.depth} in {counted.calls} calls"
        if not (trace.mode and trace.iterations >= 0 and trace.wall_s >= 0):
            yield f"layer {trace.layer} has mode {trace.mode!r}, {trace.iterations} iterations, {trace.wall_s} s"
