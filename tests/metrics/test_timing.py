import gc

import pytest

from harness.metrics.timing import timed


def test_the_call_is_timed_and_its_value_returned():
    seconds, value = timed(lambda: [1], "cpu")
    assert value == [1] and seconds > 0


def test_no_garbage_is_collected_inside_and_the_collector_runs_again_after():
    assert gc.isenabled()
    _, inside = timed(gc.isenabled, "cpu")
    assert not inside and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        timed(lambda: 1 / 0, "cpu")
    assert gc.isenabled()
