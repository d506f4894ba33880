"""Peak memory in a fresh process, against allocations of known size."""

import sys

import numpy as np
import pytest

from harness.measure.workers.process import FreshProcess
from harness.metrics.memory import resident_peak

MIB = 2**20


def peak_of(mebibytes):
    def allocate():
        held = np.ones(mebibytes * MIB, np.uint8)  # ones, since zeros would not touch their pages
        del held

    return resident_peak(allocate)


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
@pytest.mark.parametrize("mebibytes", [64, 256])
def test_what_is_allocated_and_freed_again_is_seen(mebibytes):
    peak = FreshProcess().run(peak_of, mebibytes)
    assert peak.method == "rss"
    assert mebibytes * MIB * 0.98 < peak.bytes < mebibytes * MIB + 16 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_an_earlier_peak_is_not_counted_again():
    peak = FreshProcess().run(twice, 256, 32)
    assert peak.bytes < 48 * MIB


def twice(first, second):
    peak_of(first)
    return peak_of(second)
