import os
import signal

import pytest

from harness.errors import HarnessError
from harness.executors import FreshProcess, ProcessDied

SEEN = []


def remember(value):
    SEEN.append(value)
    return os.getpid(), list(SEEN)


def complain():
    raise HarnessError("this does not work")


def complain_unpicklably():
    class Local(Exception):
        pass

    raise Local("in its own words")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def test_every_job_has_a_process_in_which_nothing_ran_before():
    fresh = FreshProcess()
    SEEN.append("here")
    (one, first), (two, second) = fresh.run(remember, 1), fresh.run(remember, 2)
    assert len({one, two, os.getpid()}) == 3
    assert first == [1] and second == [2]
    SEEN.clear()


def test_what_a_job_raises_is_raised_here():
    with pytest.raises(HarnessError, match="this does not work"):
        FreshProcess().run(complain)
    with pytest.raises(RuntimeError, match="in its own words"):
        FreshProcess().run(complain_unpicklably)


@pytest.mark.parametrize(("job", "sentence"), [(die, "SIGKILL"), (leave, "code 3")])
def test_a_process_that_dies_is_a_sentence(job, sentence):
    with pytest.raises(ProcessDied, match=sentence):
        FreshProcess().run(job)
