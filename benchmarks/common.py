"""What the suites share: a suite states what is done, the mixin states how it is measured.

The grid comes from a matrix of the harness and one of its profiles, so that both measure the same cells::

    HARNESS_BENCH_MATRIX=quickstart HARNESS_BENCH_PROFILE=fast
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable

from harness.measure.matrix import load_matrix

MATRIX = load_matrix(
    os.environ.get("HARNESS_BENCH_MATRIX", "quickstart"), os.environ.get("HARNESS_BENCH_PROFILE", "fast") or None
)
"""The matrix whose decoders, thresholds, batch sizes and seeds are measured; an empty profile is the matrix itself."""
DECODERS = {table.label or table.name: table for table in MATRIX.decoders}
TAUS, BATCHES, SEED = list(MATRIX.grid.tau), list(MATRIX.grid.batch_sizes), MATRIX.grid.seeds[0]
CHECKPOINTS = list(dict.fromkeys(dataset.checkpoint or dataset.name for dataset in MATRIX.datasets))


class Timed(ABC):
    """Seconds of one call; on a GPU until it has finished."""

    version = "1"
    number = 1
    repeat = (7, 20, 4.0)
    rounds = 2
    warmup_time = 0.3
    device = "cpu"

    @abstractmethod
    def prepare(self, *params: object) -> Callable[[], object]:
        """The call to be measured; whatever comes before it is set-up."""

    def setup(self, *params: object) -> None:
        self.call = self.prepare(*params)

    def run(self) -> None:
        from harness.metrics.timing import synchronise

        self.call()
        synchronise(self.device)

    def time_run(self, *params: object) -> None:
        self.run()


class Measured(Timed):
    """Seconds and peak memory of one call; a comparison subtracts `peakmem_setup`, which has the interpreter's too."""

    def peakmem_run(self, *params: object) -> None:
        self.run()

    def peakmem_setup(self, *params: object) -> None:
        pass
