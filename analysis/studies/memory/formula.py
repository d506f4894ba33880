"""The formula for what a decode needs in memory, from shape and batch alone; read off the network, nothing is fitted.

With B samples, L tokens of D numbers, C channels, h heads, n transformer layers in each flow layer and W the tokens of
a call, in numbers of the network's precision:

* cache: ``2 n L C`` per sample, keys and values of one flow layer, where tokens are decoded in windows;
* activations: ``11 W C`` per sample at the widest point, the GELU of an MLP: the layer's input, what attention made of
  it, its norm, and twice the hidden ``4 C``;
* tokens: in Jacobi iteration of a whole layer ``5 L D`` per sample, in windows ``(3 L + 2 W) D``, and sequentially
  ``3 L D`` while tokens are decoded and ``4.75 L D`` when they are checked at the end;
* position embeddings ``L C`` once, or per sample where classes are added;
* attention's own: nothing where the kernel is fused; where it is not, two matrices of scores ``2 h W L`` per sample and
  one mask ``L W``, with queries, keys and values beside them (``5 W C``) in place of the MLP's activations.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

BYTES = {"float32": 4, "tf32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
"""Of one number, by dtype."""

ACTIVATIONS, ATTENTION = 11, 5
"""Tensors of (B, W, C) alive at once in the MLP, and in attention."""


def predicted_live_bytes(frame: pd.DataFrame) -> pd.Series:
    """Bytes of all tensors alive at once, weights apart, for rows of the table `memory_scaling`."""
    batch, length, window = frame["batch_size"], frame["num_tokens"], frame["window"]
    channels, heads = frame["channels"], frame["heads"]
    tokens = length * frame["token_dim"]
    math = frame["attention"] == "math"
    whole, cached = window == length - 1, frame["cache_bytes"] > 0
    cache = 2 * frame["transformer_layers"] * length * channels

    def network(width: pd.Series) -> pd.Series:
        scores = 2 * heads * width * length + length * width / batch * np.sign(width - 1)
        attention = (ATTENTION * width * channels + scores).where(math, 0)
        return pd.Series(np.maximum(ACTIVATIONS * width * channels, attention))

    keys = (length * channels).where(math, 0)  # the plain kernel scales a copy of them
    stepwise = cache + np.maximum(4.75 * tokens, 3 * tokens + keys + network(window * 0 + 1))
    jacobi = network(window) + 5 * tokens
    windows = cache + network(window) + (3 * length + 2 * window) * frame["token_dim"]
    per_sample = windows.where(window > 1, stepwise)
    per_sample = per_sample.mask(whole & ~cached, jacobi).mask(whole & cached, np.maximum(stepwise, jacobi))
    embeddings = length * channels * batch.where(frame["classes"] > 0, 1)
    return (batch * per_sample + embeddings) * frame["dtype"].map(BYTES)


def predicted_peak_bytes(frame: pd.DataFrame) -> pd.Series:
    """What a measured peak should be: on CUDA the allocator's, which holds the weights too."""
    weights = frame["weights_bytes"].where(frame["method"].str.startswith("cuda"), 0)
    return predicted_live_bytes(frame) + weights


def weights_bytes(num_layers: int, transformer_layers: int, channels: int, num_tokens: int, token_dim: int) -> int:
    """Bytes of the weights of an unconditional TarFlow in float32."""
    norms_and_biases = 4 * channels + 9 * channels
    layer = transformer_layers * (12 * channels**2 + norms_and_biases) + num_tokens * channels
    projections = (token_dim + 1) * channels + (channels + 1) * 2 * token_dim
    return 4 * (num_layers * (layer + projections) + num_tokens * token_dim)
