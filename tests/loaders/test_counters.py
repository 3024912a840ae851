import threading
import time

import pytest

from anyecg.loaders.counters import STAGES, Counters


def test_the_totals_of_many_threads_are_exact():
    counters, start = Counters(), time.perf_counter_ns()

    def work(number):
        for _ in range(5000):
            counters.add(STAGES[number % 2], start, n_bytes=number, n_windows=2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    totals = counters.totals()
    assert [totals[stage].events for stage in STAGES] == [20_000, 20_000] + [0] * (len(STAGES) - 2)
    assert [total.n_windows for total in totals.values()][:2] == [40_000, 40_000]
    assert [total.n_bytes for total in totals.values()][:2] == [5000 * (0 + 2 + 4 + 6), 5000 * (1 + 3 + 5 + 7)]


def test_seconds_are_those_from_start_to_the_call():
    counters, start = Counters(traced=True), time.perf_counter_ns()
    counters.add("read", start, n_bytes=10, n_windows=3)
    (event,) = counters.events
    assert counters.totals()["read"].seconds == pytest.approx((event.end - event.start) * 1e-9)
    assert event == ("read", start, event.end, threading.get_native_id(), 10, 3)


def test_events_are_kept_only_when_asked_for():
    assert Counters().events is None


def test_an_unknown_stage_is_a_mistake_of_ours():
    with pytest.raises(KeyError):
        Counters().add("raed", 0)
