"""Flows: one forward pass, one step, and loading."""

from .common import BATCHES, CHECKPOINTS, SEED, Measured, Timed


class Encode(Measured):
    """Data to noise: one call of every layer, the floor of any one-pass decoder."""

    param_names = ["checkpoint", "batch_size"]
    params = (CHECKPOINTS, BATCHES)

    def prepare(self, checkpoint, batch_size):
        import torch

        from harness.flows import load_flow
        from harness.flows.latents import indexed_latents

        flow = load_flow(checkpoint)
        data = flow.to_images(indexed_latents(flow, SEED, range(batch_size)))
        return torch.no_grad()(lambda: flow.encode(data))


class Affine(Timed):
    """One call of one layer on a window in the middle of the sequence, the prefix cached."""

    param_names = ["checkpoint", "window", "batch_size"]
    params = (CHECKPOINTS, [1, 8, 32], BATCHES)

    def prepare(self, checkpoint, window, batch_size):
        import torch

        from harness.flows import load_flow
        from harness.flows.latents import indexed_latents

        flow = load_flow(checkpoint)
        layer, condition = flow.layers[0], flow.condition(batch_size)
        tokens = layer.arrange(indexed_latents(flow, SEED, range(batch_size)))
        start = flow.num_tokens // 2
        cache = layer.new_cache(batch_size, condition)
        with torch.no_grad():
            layer.affine(tokens[:, :start], cache, 0, condition)
        return torch.no_grad()(lambda: layer.affine(tokens[:, start : start + window], cache, start, condition))


class Load(Timed):
    """A checkpoint from its file."""

    param_names = ["checkpoint"]
    params = (CHECKPOINTS,)

    def prepare(self, checkpoint):
        from harness.flows import load_flow

        return lambda: load_flow(checkpoint)
