import pandas as pd
import pytest

from analysis.drift import doubts
from harness.measure.workers.device_state import Reading, between, read, watch
from harness.runs.tables import TABLES

CELLS = pd.DataFrame({"group_id": ["a", "a", "b"], "dataset": "digits", "batch_size": [4, 4, 16]})


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


def reading(**facts):
    quiet = dict.fromkeys(("clock_hz", "temperature_c", "reasons", "throttles", "foreign_processes", "load", "waited_s"))
    return Reading(**(quiet | {"busy_s": 0.0, "own_s": 0.0, "at_s": 0.0} | facts))


def test_foreign_load_is_what_the_machine_did_less_what_this_process_did():
    told = between(reading(busy_s=10.0, own_s=2.0, at_s=5.0), reading(busy_s=16.0, own_s=5.0, at_s=7.0))
    assert told["foreign_cpus"] == pytest.approx(1.5)
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
