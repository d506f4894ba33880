"""How a flow is decoded: one small file per algorithm, all written on `CausalLayer.affine`."""

from harness.decoders.base import Decoder, DecodeResult, LayerTrace, build_decoder, decoders
from harness.flows.base import Guidance

__all__ = ["DecodeResult", "Decoder", "Guidance", "LayerTrace", "build_decoder", "decoders"]
