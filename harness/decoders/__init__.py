"""How a flow is decoded: one small file per algorithm, all written on `CausalLayer.affine`."""

from harness.decoders.decoder import Decoder, DecodeResult, LayerTrace, build_decoder, decoders
from harness.flows.protocols import Guidance

__all__ = ["DecodeResult", "Decoder", "Guidance", "LayerTrace", "build_decoder", "decoders"]
