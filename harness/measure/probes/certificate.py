"""How far certificates can be trusted: each sample's, beside its true deviation from the exact sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field

from harness.decoders import Decoder, build_decoder
from harness.decoders.certificate import certifiable, ratio_of
from harness.errors import HarnessError
from harness.flows import CausalFlow
from harness.measure.cells import Subject
from harness.measure.probes.probe import Probe, probe_table, probes
from harness.measure.units import Bench, Rows, Unit, batches
from harness.options import Batch, Count, parse_decoder
from harness.runs.tables import FLAG, INTEGER, REAL, TEXT

CERTIFICATES = probe_table(
    "certificates",
    ("spec", "sample"),
    {
        "spec": TEXT,  # the decoder with its options, as on a command line
        "decoder": TEXT,
        "sample": INTEGER,
        "certificate_rms": REAL,  # of encode(sample) - latents over the sample's numbers, on the prior's scale
        "certificate_max": REAL,
        "estimate": REAL,  # the deviation that the certificate estimates; null where it is not calibrated
        "upper": REAL,  # its upper quantile
        "polished": FLAG,
        "deviation_rmse": REAL,  # the true one, to the sequential sample of the same latents
        "ratio_low": REAL,  # what certificates are to deviations, of samples not polished: 5 %, median, 95 %
        "ratio_median": REAL,
        "ratio_high": REAL,
    },
)
"""One row per flow, decoder and sample."""


@probes.register("certificate")
@dataclass(kw_only=True)
class CertificateProbe(Probe):
    """The certificate of every sample beside its true deviation, decoder by decoder."""

    tables = (CERTIFICATES,)

    decoders: Annotated[tuple[str, ...], Field(description="As 'NAME option=value'; each is made to certify.")] = (
        "ujd tau=0.5", "ujd tau=0.1", "sejd tau=0.5", "sejd tau=0.1", "fitted", "sejd tau=0.5 certify=0.01",
    )  # fmt: skip
    samples: Annotated[Count, Field(description="Latents that are decoded.")] = 64
    batch: Annotated[Batch, Field(description="Samples that are decoded together.")] = 32

    def reads(self) -> list[tuple[Decoder, int]]:
        calibrated = build_decoder("sequential", certify=1.0)
        return [(calibrated, self.batch), *((_build(spec), self.batch) for spec in self.decoders)]

    def units(self, flow: CausalFlow, subject: Subject) -> list[Unit]:
        if not certifiable(flow):
            raise HarnessError(f"layers of '{subject.checkpoint}' define their own update: no call inverts them")
        return [Unit(spec, (subject,), 1.0, {"spec": spec}, ("certificates",)) for spec in self.decoders]

    @torch.no_grad()
    def measure(self, unit: Unit, bench: Bench) -> dict[str, Rows]:
        (subject,), spec = unit.subjects, unit.key["spec"]
        decoder, ratio, rows = _build(spec), ratio_of(bench.flow(subject)), []
        assert ratio is not None  # what is read was made before
        parts = [*batches(range(self.samples), self.batch)]
        drawn = bench.keep("batches", subject.cell_id, lambda: [bench.batch(subject, part) for part in parts])
        for part, batch in zip(parts, drawn, strict=True):
            result = batch.result(decoder)
            told, deviation = result.certificate, (result.tokens - batch.exact).square().mean(dim=(1, 2)).sqrt()
            assert told is not None and told.estimate is not None and told.upper is not None  # it certifies
            columns = {
                "sample": list(part),
                "certificate_rms": told.rms.tolist(),
                "certificate_max": told.largest.tolist(),
                "estimate": told.estimate.tolist(),
                "upper": told.upper.tolist(),
                "polished": told.polished.tolist(),
                "deviation_rmse": deviation.tolist(),
            }
            rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        shared = {"ratio_low": ratio.low, "ratio_median": ratio.median, "ratio_high": ratio.high}
        described = {"spec": spec, "decoder": parse_decoder(spec)["name"]} | shared
        return {"certificates": [described | row for row in rows]}


def _build(spec: str) -> Decoder:
    decoder = build_decoder(**parse_decoder(spec))
    return replace(decoder, certify=decoder.certify or "state")
