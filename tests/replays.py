"""A stand-in for captured CUDA graphs, on any device."""

import torch


class Replays:
    """A capture that runs the call again, into the same outputs: what a graph does, without one."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, call):
        self.captured += 1
        outputs = tuple(torch.full_like(part, float("nan")) for part in call())

        def replay():
            self.replayed += 1
            for kept, new in zip(outputs, call(), strict=True):
                kept.copy_(new)

        return replay, outputs
