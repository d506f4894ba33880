"""Which job runs when, and once more when its worker is lost: on workers that fail as they are told."""

import threading
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar

import pytest

from harness.errors import HarnessError
from harness.measure.units import Unit
from harness.measure.workers.dispatch import UNOPENED, Finished, Lost, Started, dispatch
from harness.measure.workers.executor import WorkerLost
from harness.measure.workers.job import Job, Outcome, jobs_of


@dataclass(frozen=True)
class Work:
    exclusive: bool = False
    name: ClassVar[str] = "work"

    def together(self, unit):
        return unit.title[0]


class Fake:
    """Workers that answer at once, after what `script` says of a unit's next turns: an exception, or None."""

    def __init__(self, slots=1, script=None, unopened=0):
        self.many, self.script, self.unopened = slots, script or {}, unopened
        self.open_now, self.most, self.closed, self.lock = 0, 0, [], threading.Lock()

    def slots(self, device, exclusive):
        return self.many

    def open(self, job):
        if self.unopened:
            self.unopened -= 1
            raise WorkerLost("nobody came", begun=False)
        with self.lock:
            self.open_now += 1
            self.most = max(self.most, self.open_now)
        return FakeWorker(self)

    def close(self):
        pass


class FakeWorker:
    def __init__(self, fake):
        self.fake = fake

    def measure(self, unit, inputs):
        turns = self.fake.script.get(unit.title, [])
        error = turns.pop(0) if turns else None
        if error:
            raise error
        return Outcome({"row": [{"unit": unit.title, "inputs": list(inputs)}]}, {}, "session", {})

    def close(self, now):
        with self.fake.lock:
            self.fake.open_now -= 1
            self.fake.closed.append(now)


def jobs(*titles, inputs=()):
    return jobs_of(Work(), [Unit(title, (), 1.0, inputs=inputs) for title in titles], slots=9)


def run(fake, work, folder, retries=2):
    with closing(dispatch(fake, work, folder, retries)) as events:
        return list(events)


def finished(events):
    return [(event.unit.title, event.attempts) for event in events if isinstance(event, Finished)]


def test_units_of_a_job_in_order_each_once(tmp_path):
    events = run(Fake(), jobs("a1", "a2", "b1", "a3"), tmp_path)
    assert finished(events) == [("a1", 1), ("a2", 1), ("a3", 1), ("b1", 1)]
    assert [type(event) for event in events] == [Started, Finished] * 4
    assert run(Fake(), [], tmp_path) == []


def test_slots_bound_what_runs_at_once(tmp_path):
    fake = Fake(slots=2)
    assert len(finished(run(fake, jobs(*(f"{letter}1" for letter in "abcdefgh")), tmp_path))) == 8
    assert fake.most <= 2 and fake.open_now == 0


def test_what_is_left_of_a_lost_job_runs_again(tmp_path):
    events = run(Fake(script={"a2": [WorkerLost("gone"), WorkerLost("gone")]}), jobs("a1", "a2", "a3", "b1"), tmp_path)
    assert sorted(finished(events)) == [("a1", 1), ("a2", 3), ("a3", 3), ("b1", 1)]
    assert [event.again for event in events if isinstance(event, Lost)] == [True, True]


def test_a_job_that_is_lost_too_often_is_given_up_and_the_others_go_on(tmp_path):
    script = {"a1": [WorkerLost("gone")] * 9}
    events = run(Fake(script=script), jobs("a1", "a2", "b1"), tmp_path, retries=1)
    assert finished(events) == [("b1", 1)] and len(script["a1"]) == 7
    assert [event.again for event in events if isinstance(event, Lost)] == [True, False]


def test_a_worker_that_never_came_up_costs_no_attempt_but_not_for_ever(tmp_path):
    assert finished(run(Fake(unopened=UNOPENED), jobs("a1"), tmp_path, retries=0)) == [("a1", 1)]
    events = run(Fake(unopened=99), jobs("a1"), tmp_path, retries=0)
    assert finished(events) == [] and not events[-1].again


def test_what_a_worker_raises_ends_everything(tmp_path):
    fake = Fake(slots=2, script={"a1": [HarnessError("no such file")]})
    with pytest.raises(HarnessError, match="no such file"):
        run(fake, jobs("a1", "b1", "c1"), tmp_path)


def test_who_stops_listening_stops_the_workers(tmp_path):
    fake = Fake()
    with closing(dispatch(fake, jobs("a1", "a2", "a3"), tmp_path, 0)) as events:
        next(events)
        assert isinstance(next(events), Finished)
    assert True in fake.closed


def test_units_get_the_files_that_they_name(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "y").write_bytes(b"2")
    (_, done) = run(Fake(), jobs("a1", inputs=("x", "y")), tmp_path)
    assert done.outcome.rows["row"][0]["inputs"] == [b"1", b"2"]


def test_alone_or_together():
    units = [Unit(title, (), 1.0) for title in ("a1", "b1")]
    assert len(jobs_of(Work(), units, slots=1)) == 1  # one process after the other: what they share is made once
    assert len(jobs_of(Work(), units, slots=2)) == 2
    assert len(jobs_of(Work(exclusive=True), units, slots=1)) == 2  # what is timed has a process of its own
    assert Job(Work(exclusive=True), ()).exclusive and Job(Work(), (), device="cuda").exclusive
