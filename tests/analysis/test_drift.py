import pandas as pd
import pytest

from analysis.drift import LEFT_OUT, doubts, quiet_rounds
from harness.measure.workers.device_state import Reading, between, read, watch
from harness.runs.tables import TABLES

CELLS = pd.DataFrame({"group_id": [*"aab"], "dataset": "digits", "checkpoint": "digits", "batch_size": [4, 4, 16]})


def sentinels(*times, group="a", status="ok"):
    places = ("start", "middle", "end")
    rows = [{"group_id": group, "place": p, "wall_s": t, "status": status} for p, t in zip(places, times, strict=True)]
    return TABLES["sentinels"].to_arrow(rows).to_pandas()


def devices(*rounds):
    rows = [{"group_id": "a", "round": number, "foreign_cpus": 0.0, **facts} for number, facts in enumerate(rounds)]
    return TABLES["devices"].to_arrow(rows).to_pandas()


def test_a_machine_that_held_still_is_not_told_of():
    assert doubts(CELLS, sentinels(1.0, 1.09, 1.05), devices({}, {"throttled": False})) == []
    assert doubts(CELLS, TABLES["sentinels"].empty(), TABLES["devices"].empty()) == []
    assert doubts(CELLS, sentinels(1.0, 5.0, 1.0, status="failed"), devices({})) == []


def test_drift_beyond_the_bound_is_told_with_its_times():
    (told,) = doubts(CELLS, sentinels(1.0, 1.05, 1.2), TABLES["devices"].empty())
    assert told.startswith("digits, batch 4:") and "drifted by 20%" in told
    assert "start 1 s, middle 1.05 s, end 1.2 s" in told


def test_throttled_rounds_and_foreign_load_are_told():
    rounds = [{"throttled": True, "throttle_reasons": "power,thermal"}, {"throttled": False, "throttle_reasons": ""}]
    (told,) = doubts(CELLS, TABLES["sentinels"].empty(), devices(*rounds))
    assert "held back in 1 of 2 rounds (power, thermal)" in told
    (told,) = doubts(CELLS, TABLES["sentinels"].empty(), devices({"foreign_cpus": 0.9}, {"foreign_cpus": 0.8}, {}))
    assert "kept 0.8 processors busy" in told
    (told,) = doubts(CELLS, TABLES["sentinels"].empty(), devices({"foreign_processes": 0}, {"foreign_processes": 2}))
    assert "on the GPU" in told


SESSIONS = {"sessions": {"s": {"environment": {"logical_cores": 4, "threads": 2}}}}


def timings(rounds=20, seconds=1.0, group="a"):
    rows = [{"group_id": group, "session": "s", "round": number, "wall_s": seconds, "status": "ok"}
            for number in range(rounds)]  # fmt: skip
    return TABLES["timings"].to_arrow(rows).to_pandas()


def left_out(rounds, *, seconds=1.0, sentinels=None, manifest=SESSIONS):
    """Numbers of the rounds that do not count, by what was stored of each, and whether the group has no verdict."""
    stored = devices(*rounds).assign(session="s")
    beside = TABLES["sentinels"].empty() if sentinels is None else sentinels.assign(session="s")
    tables = {"timings": timings(len(rounds), seconds), "devices": stored, "sentinels": beside}
    quiet = quiet_rounds(tables, manifest)
    assert quiet.sentences(CELLS) == [f"digits, batch 4: {words}." for words in quiet.told.values()]
    return quiet.timings.loc[quiet.timings["status"] == LEFT_OUT, "round"].to_list(), quiet


def test_rounds_without_a_quiet_machine_are_left_out_and_told():
    rounds = [{"foreign_cpus": 0.1} for _ in range(20)]
    assert left_out(rounds)[0] == []
    rounds[3] |= {"foreign_cpus": 2.7}
    rounds[4] |= {"foreign_cpus": 2.2}  # the run has threads for two of four processors
    rounds[6] |= {"waited_cpus": 0.2}
    rounds[7] |= {"throttled": True}
    rounds[9] |= {"foreign_processes": 1}
    numbers, quiet = left_out(rounds)
    assert numbers == [3, 6, 7, 9] and not quiet.noisy
    words = "4 of 20 rounds were noisy (other processes and the clock was held back) and are left out"
    assert quiet.told == {"a": words}
    assert left_out(rounds, manifest={})[0] == [3, 4, 6, 7, 9]  # it is not known how many it had
    assert left_out(rounds, seconds=0.01)[0] == [6, 7, 9]  # in which the system's clock hardly ticks


def test_fewer_quiet_rounds_than_an_interval_needs_are_no_verdict():
    numbers, quiet = left_out([{"foreign_cpus": 4.0 * (number > 3)} for number in range(20)])
    assert numbers == [] and quiet.noisy == {"a"} and "too few are left for a verdict" in quiet.told["a"]
    numbers, quiet = left_out([{"foreign_cpus": 4.0 * (number > 4)} for number in range(20)])
    assert len(numbers) == 15 and not quiet.noisy


@pytest.mark.parametrize(
    ("times", "first", "last"),
    [((1, 1.2, 1.1), 0, 0), ((1.3, 1, 1), 0, 10), ((1, 1, 1.3), 10, 20), ((1.4, 1, 1.4), 0, 20), ((1, 1.3, 1), 0, 20)],
)
def test_rounds_beside_a_slow_sentinel_are_left_out(times, first, last):
    numbers, quiet = left_out([{}] * 20, sentinels=sentinels(*times))
    assert (numbers == [] and quiet.noisy == {"a"}) if last - first == 20 else numbers == list(range(first, last))


def test_rounds_of_which_nothing_is_stored_count():
    tables = {"timings": timings(), "devices": TABLES["devices"].empty(), "sentinels": TABLES["sentinels"].empty()}
    for sessions in (None, {"s": {"environment": 3}}):
        quiet = quiet_rounds(tables, {"sessions": sessions})
        assert not quiet.told and not quiet.noisy and quiet.timings["status"].eq("ok").all()


def reading(**facts):
    quiet = dict.fromkeys(
        ("clock_hz", "temperature_c", "reasons", "throttles", "foreign_processes", "load", "waited_s")
    )
    return Reading(**(quiet | {"busy_s": 0.0, "own_s": 0.0, "at_s": 0.0} | facts))


def test_foreign_load_is_what_the_machine_did_less_what_this_process_did():
    told = between(reading(busy_s=10.0, own_s=2.0, at_s=5.0), reading(busy_s=16.0, own_s=5.0, at_s=7.0))
    assert told["foreign_cpus"] == pytest.approx(1.5)
    assert told["waited_cpus"] is None
    waiting = between(reading(waited_s=1.0, at_s=5.0), reading(waited_s=1.5, at_s=7.0))
    assert waiting["waited_cpus"] == pytest.approx(0.25)
    assert told["throttled"] is None and told["throttle_reasons"] is None  # nothing tells here


def test_throttling_is_a_reason_now_or_a_count_that_grew():
    assert between(reading(throttles=3), reading(throttles=3))["throttled"] is False
    grown = between(reading(throttles=3), reading(throttles=4))
    assert grown["throttled"] is True and grown["throttle_reasons"] == "thermal"
    held = between(reading(reasons=("power",)), reading(reasons=()))
    assert held["throttled"] is True and held["throttle_reasons"] == "power"
    assert between(reading(foreign_processes=0), reading(foreign_processes=3))["foreign_processes"] == 3


def test_what_is_read_here_fits_the_table():
    with watch("cpu") as told:
        sum(range(10**6))
    assert {"group_id", "round", "session", *told} == set(TABLES["devices"].names)
    assert read("cpu").busy_s >= read("cpu").own_s >= 0
