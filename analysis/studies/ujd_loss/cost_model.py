"""What Jacobi decoding gains, predicted: from three measured numbers, and those of cost from the shape alone.

With K layers, S the seconds of one decoded sequentially, c those of one Jacobi iteration over S, and t_k the iterations
of layer k, in decoding order::

    speed-up of UJD  = K / (c * (t_1 + ... + t_K))
    speed-up of SeJD = K / (1 + c * (t_2 + ... + t_K))

The three numbers are c, t_1, and the mean of the other t. UJD turns slower than sequential where the mean number of
iterations exceeds 1 / c. Nothing is fitted so far; c itself is predicted from shape and batch by a sum of costs, whose
coefficients, one set for an iteration and one for sequential decoding, are fitted to some flows and tested on others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

NETWORK = {"token_dim": 48, "channels": 128, "transformer_layers": 2}
"""That of the trained flows, for which the break-even is drawn."""
PREDICTIONS = {"by_cost": "measured_c", "by_shape": "fitted_c", "by_depth": "one_call"}
"""Predictions of a speed-up, and the c that each is made with."""
SHAPE = ["num_tokens", "token_dim", "channels", "transformer_layers", "batch_size"]


def predicted_speedup(layers: Any, c: Any, first: Any, rest: Any, decoder: str) -> Any:
    """Speed-up of ``"ujd"`` or ``"sejd"`` over sequential decoding; `rest` is the mean of t in layers 2 to K.

    >>> predicted_speedup(6, 0.05, 10, 4, "ujd"), predicted_speedup(6, 0.05, 10, 4, "sejd")
    (4.0, 3.0)
    """
    others = c * rest * (layers - 1)
    return layers / (others + (c * first if decoder == "ujd" else 1))


@dataclass(frozen=True)
class CostModel:
    """Seconds of one Jacobi iteration and of a layer decoded sequentially, as sums of costs, none negative."""

    iteration: np.ndarray  # (terms,) coefficients of `_terms` with one call of L tokens
    sequential: np.ndarray  # (terms,) the same with L - 1 calls of one token

    @classmethod
    def fit(cls, costs: pd.DataFrame) -> CostModel:
        """Non-negative least squares of relative errors; `costs` is one of `median_costs`."""
        from scipy.optimize import nnls

        def coefficients(column: str, stepwise: bool) -> np.ndarray:
            relative = _terms(costs, stepwise) / costs[column].to_numpy()[:, None]
            return nnls(relative, np.ones(len(costs)))[0]

        return cls(coefficients("iteration_s", False), coefficients("sequential_s", True))

    def c(self, shapes: pd.DataFrame) -> np.ndarray:
        """(rows,) one over the other."""
        return (_terms(shapes, False) @ self.iteration) / (_terms(shapes, True) @ self.sequential)


def median_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """One row per flow and batch of the table `costs`: medians, c the median of the rounds' ratios, and its spread."""
    rounds = costs.assign(c=costs["iteration_s"] / costs["sequential_s"])
    found = rounds.groupby(["checkpoint", "image_size", "patch", *SHAPE], as_index=False).agg(
        iteration_s=("iteration_s", "median"),
        sequential_s=("sequential_s", "median"),
        c=("c", "median"),
        c_low=("c", lambda values: values.quantile(0.25)),
        c_high=("c", lambda values: values.quantile(0.75)),
        rounds=("c", "size"),
    )
    return found.assign(steps_per_iteration=found["c"] * (found["num_tokens"] - 1))


def relative_errors(predicted: np.ndarray | pd.Series, measured: np.ndarray | pd.Series) -> np.ndarray:
    """(rows,) how many times too large or small, less 1: the same for a factor of 2 either way."""
    return np.exp(np.abs(np.log(np.asarray(predicted, float) / np.asarray(measured, float)))) - 1


def _terms(shapes: pd.DataFrame, stepwise: bool) -> np.ndarray:
    """(rows, 5): calls, weights read by each, multiplications by weights, those of attention, and numbers moved."""
    length, width, depth, batch = (
        shapes[name].to_numpy(float) for name in ("num_tokens", "channels", "transformer_layers", "batch_size")
    )
    calls = length - 1 if stepwise else np.ones_like(length)
    work = [calls, calls * width**2, batch * length * width**2, batch * length**2 * width, batch * length * width]
    return np.stack(work, axis=1) * depth[:, None]
