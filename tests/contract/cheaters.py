"""Decoders that break one promise each. Not registered: the contract finds them by ``cheaters:Name``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from harness.decoders import Decoder, DecodeResult, build_decoder
from harness.decoders.jacobi import UniformJacobi
from harness.decoders.micro_batches import SEQUENTIAL
from harness.decoders.sequential import Sequential, solve_sequential
from harness.decoders.trace import Certificate, Ratio


@dataclass(kw_only=True)
class Stored(Decoder):
    """Returns samples that it drew from other latents."""

    def solve(self, layer, inputs, condition):
        return solve_sequential(layer, inputs, condition)

    def decode(self, flow, latents, labels=None, guidance=None):
        stored = flow.sample_latents(len(latents), torch.Generator().manual_seed(4711))
        return super().decode(flow, stored, labels, guidance)


class UnderReports(UniformJacobi):
    """Claims half of its token evaluations."""

    def solve(self, layer, inputs, condition):
        tokens, trace = super().solve(layer, inputs, condition)
        return tokens, replace(trace, token_evaluations=trace.token_evaluations / 2)


class UnderReportsDepth(UniformJacobi):
    """Claims that its iterations run at the same time."""

    def solve(self, layer, inputs, condition):
        tokens, trace = super().solve(layer, inputs, condition)
        return tokens, replace(trace, depth=1)


class WrongOrder(UniformJacobi):
    """Lists its traces from the data side."""

    def decode(self, flow, latents, labels=None, guidance=None):
        result = super().decode(flow, latents, labels, guidance)
        return replace(result, layers=result.layers[::-1])


class SpoilsLatents(UniformJacobi):
    """Uses the caller's latents as its work space."""

    def decode(self, flow, latents, labels=None, guidance=None):
        result = super().decode(flow, latents, labels, guidance)
        latents.copy_(result.tokens)
        return result


class SilentNaN(UniformJacobi):
    """Overflows and says that all is well."""

    def decode(self, flow, latents, labels=None, guidance=None):
        result = super().decode(flow, latents, labels, guidance)
        return replace(result, layers=[replace(trace, converged=True) for trace in result.layers])


class EmitsNaN(UniformJacobi):
    """Returns a NaN in every sample."""

    def decode(self, flow, latents, labels=None, guidance=None):
        result = super().decode(flow, latents, labels, guidance)
        result.tokens[:, -1] = float("nan")
        return replace(result, images=flow.to_images(result.tokens))


class Moody(UniformJacobi):
    """Starts from unseeded noise."""

    def decode(self, flow, latents, labels=None, guidance=None):
        noise = 0.01 * torch.randn_like(latents) if self.tau else 0.0
        return super().decode(flow, latents + noise, labels, guidance)


class ClaimsConvergence(UniformJacobi):
    """Stops at tau = 0.5 though 0 was asked for, and calls that converged."""

    def __post_init__(self):
        super().__post_init__()
        self.tau = max(self.tau, 0.5)


class LateByOne(UniformJacobi):
    """Lets one of its iterations do nothing."""

    def solve(self, layer, inputs, condition):
        if self.max_iterations is None:
            return super().solve(layer, inputs, condition)
        return UniformJacobi(tau=self.tau, max_iterations=max(1, self.max_iterations - 1)).solve(
            layer, inputs, condition
        )


class Crowded(UniformJacobi):
    """Scales a sample by how many others there are."""

    def decode(self, flow, latents, labels=None, guidance=None):
        return super().decode(flow, latents * (1 + (3 - len(latents)) / 100), labels, guidance)


class IgnoresGuidance(UniformJacobi):
    """Leaves guidance out."""

    def decode(self, flow, latents, labels=None, guidance=None):
        return super().decode(flow, latents, labels)


class Tireless(UniformJacobi):
    """Solves each layer twice over."""

    def solve(self, layer, inputs, condition):
        _, first = super().solve(layer, inputs, condition)
        tokens, second = super().solve(layer, inputs, condition)
        return tokens, replace(
            second,
            iterations=first.iterations + second.iterations,
            token_evaluations=first.token_evaluations + second.token_evaluations,
            depth=first.depth + second.depth,
        )


class Cropped(UniformJacobi):
    """Returns images that lack a row."""

    def decode(self, flow, latents, labels=None, guidance=None) -> DecodeResult:
        result = super().decode(flow, latents, labels, guidance)
        return replace(result, images=result.images[:, :, 1:])


class SeesTheTap(UniformJacobi):
    """Decodes properly only while it is watched."""

    def decode(self, flow, latents, labels=None, guidance=None):
        if type(flow).__name__ == "TarFlow" and self.tau:
            return build_decoder("ujd", tau=5.0).decode(flow, latents, labels, guidance)
        return super().decode(flow, latents, labels, guidance)


class ClaimsLittle(UniformJacobi):
    """Says that it takes the memory of the sequential decoder."""

    def footprint(self, layer):
        return SEQUENTIAL


class Flatters(UniformJacobi):
    """Certifies what it has not looked at."""

    def decode(self, flow, latents, labels=None, guidance=None):
        if self.certify is None:
            return super().decode(flow, latents, labels, guidance)
        result = UniformJacobi(tau=self.tau).decode(flow, latents, labels, guidance)
        nothing = torch.zeros(len(latents))
        tolerance = None if self.certify == "state" else self.certify
        return replace(
            result, certificate=Certificate(nothing, nothing, nothing > 0, Ratio(1.0, 1.0, 1.0, 1.0, 1.0, 1), tolerance)
        )


class Raises(Sequential):
    """Fails at once."""

    def solve(self, layer, inputs, condition):
        raise RuntimeError("no such\nkernel")
