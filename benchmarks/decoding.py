"""Decoders: what the harness is about."""

from collections.abc import Callable

from .common import BATCHES, CHECKPOINTS, DECODERS, MATRIX, SEED, TAUS, Measured


class Decode(Measured):
    """One decode of a flow's latents, with its deterministic costs and its deviation from sequential."""

    param_names = ["checkpoint", "decoder", "tau", "batch_size"]
    params = (CHECKPOINTS, list(DECODERS), TAUS, BATCHES)

    def prepare(self, checkpoint: str, decoder: str, tau: float, batch_size: int) -> Callable[[], object]:
        import torch

        from harness.decoders import build_decoder, decoders
        from harness.flows import load_flow
        from harness.flows.latents import cycling_labels, indexed_latents
        from harness.measure.cells import resolve_device

        table = DECODERS[decoder]
        takes_tau = decoders.get(table.name).takes_tau
        facts = {"dataset": checkpoint, "checkpoint": checkpoint, "decoder": table.name, "label": decoder, "tau": tau,
                 "batch_size": batch_size, "seed": SEED}  # fmt: skip
        excluded = any(entry.matches(facts) for entry in MATRIX.exclude)
        if excluded or (not takes_tau and tau != TAUS[0]) or (table.tau and tau not in table.tau):
            raise NotImplementedError("not a cell of the matrix")  # asv's way to leave a combination out
        self.device = resolve_device(MATRIX.device)
        self.flow = load_flow(checkpoint, self.device, getattr(torch, MATRIX.dtype))
        self.latents = indexed_latents(self.flow, SEED, range(batch_size))
        self.labels = cycling_labels(self.flow, range(batch_size))
        self.decoder = build_decoder(table.name, **({"tau": tau} if takes_tau else {}), **table.options)
        return self.decode

    def decode(self):
        return self.decoder.decode(self.flow, self.latents, self.labels)

    def track_iterations(self, *params: object) -> int:
        return sum(trace.iterations for trace in self.decode().layers)

    def track_token_evaluations(self, *params: object) -> float:
        return self.decode().token_evaluations

    def track_fpe(self, *params: object) -> float:
        return self.decode().fpe

    def track_depth(self, *params: object) -> int:
        return self.decode().depth

    def track_cache(self, *params: object) -> int:
        from harness.flows.tap import Tally, tap

        tally = Tally()
        self.decoder.decode(tap(self.flow, tally), self.latents, self.labels)
        return tally.peak_cache_bytes

    def track_deviation(self, *params: object) -> float:
        from harness.decoders import build_decoder
        from harness.metrics.deviation import Deviation

        deviation = Deviation()
        exact = build_decoder("sequential").decode(self.flow, self.latents, self.labels)
        deviation.add(self.decode().tokens.cpu(), exact.tokens.cpu())
        return deviation.result()["deviation_rmse"]

    track_iterations.unit = "iterations"
    track_token_evaluations.unit = "tokens"
    track_fpe.unit = "forward passes"
    track_depth.unit = "calls"
    track_cache.unit = "bytes"
    track_deviation.unit = "rmse"
